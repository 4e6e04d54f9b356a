//! Who may read and who may upload.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// A user and a password, as digests: comparing them takes the same time whatever was sent, and
/// nothing that prints a configuration can print them.
#[derive(Clone)]
pub struct Credentials {
    user: String,
    user_digest: [u8; 32],
    password_digest: [u8; 32],
}

impl Credentials {
    /// Credentials that match exactly `user` with `password`.
    pub fn new(user: String, password: &str) -> Self {
        Self {
            user_digest: Sha256::digest(&user).into(),
            password_digest: Sha256::digest(password).into(),
            user,
        }
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whether these are the user and the password, in constant time.
    pub fn matches(&self, user: &str, password: &str) -> bool {
        let user_digest: [u8; 32] = Sha256::digest(user).into();
        (self.user_digest.ct_eq(&user_digest) & self.password(password)).into()
    }

    /// Whether this is the password, in constant time. A bearer of it needs no name.
    pub fn matches_bearer(&self, password: &str) -> bool {
        self.password(password).into()
    }

    fn password(&self, password: &str) -> Choice {
        let digest: [u8; 32] = Sha256::digest(password).into();
        self.password_digest.ct_eq(&digest)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The configured users.
#[derive(Debug, Clone)]
pub struct Users {
    /// Who may read; none: everyone.
    pub read: Option<Credentials>,
    /// Who may upload and read.
    pub write: Option<Credentials>,
    /// Who may upload when no write user is set.
    pub anonymous: Writers,
    /// Whether who holds a client certificate is the write user, too.
    pub certificates: bool,
}

/// Who may upload without credentials when no write user is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Clients on this machine, if no user is configured at all: what a first try needs.
    LocalOnly,
    /// Whoever reaches the socket.
    Anyone,
    /// Nobody.
    Nobody,
}

/// What one kind of access asks of a client.
#[derive(Debug, Clone)]
pub enum Requirement {
    /// Nothing.
    Anyone,
    /// Nothing of a client on this machine, and what no other client can give. The socket is local;
    /// whether the request is can only be seen from the request.
    Local,
    /// To be one of these users, or to hold a client certificate where those count.
    User(Vec<Credentials>),
    /// To hold a client certificate.
    Certificate,
    /// What no client can give.
    Nobody,
}

/// What reading and what writing ask of a client.
#[derive(Debug, Clone)]
pub struct Access {
    /// GET and HEAD.
    pub read: Requirement,
    /// Every other method.
    pub write: Requirement,
}

impl Users {
    /// What is asked of clients on a socket that is `local` (loopback or unix) or not.
    pub fn access(&self, local: bool) -> Access {
        let unconfigured = self.read.is_none() && self.write.is_none() && !self.certificates;
        Access {
            read: match &self.read {
                None => Requirement::Anyone,
                Some(read) => Requirement::User(
                    [Some(read), self.write.as_ref()].into_iter().flatten().cloned().collect(),
                ),
            },
            write: match (&self.write, self.anonymous) {
                (Some(write), _) => Requirement::User(vec![write.clone()]),
                (None, Writers::Anyone) => Requirement::Anyone,
                (None, Writers::LocalOnly) if local && unconfigured => Requirement::Local,
                (None, _) if self.certificates => Requirement::Certificate,
                (None, _) => Requirement::Nobody,
            },
        }
    }
}
