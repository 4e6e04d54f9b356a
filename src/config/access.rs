//! Users, and what clients need to read and to upload.

use std::{fmt, fs};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::values::Values;

/// A user and a password, stored as digests: comparisons take constant time, and the password cannot be
/// printed with the configuration.
#[derive(Clone)]
pub struct Credentials {
    user: String,
    user_digest: [u8; 32],
    password_digest: [u8; 32],
}

impl Credentials {
    /// Creates credentials that match exactly `user` with `password`.
    pub fn new(user: String, password: &str) -> Self {
        Self {
            user_digest: Sha256::digest(&user).into(),
            password_digest: Sha256::digest(password).into(),
            user,
        }
    }

    /// The name of the user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Compares user and password in constant time.
    pub fn matches(&self, user: &str, password: &str) -> bool {
        let user_digest: [u8; 32] = Sha256::digest(user).into();
        (self.user_digest.ct_eq(&user_digest) & self.password(password)).into()
    }

    /// Compares only the password, in constant time, for `Authorization: Bearer`.
    pub fn matches_bearer(&self, password: &str) -> bool {
        self.password(password).into()
    }

    /// Reads the user in the variable `name`, with the password from `…_PASS` or `…_PASSFILE`. A user
    /// without a password, and a password without a user, are problems.
    pub(super) fn read(values: &mut Values, name: &str) -> Option<Self> {
        let (pass, passfile) = (format!("{name}_PASS"), format!("{name}_PASSFILE"));
        let owned = |variable: &str| values.get(variable).map(str::to_owned);
        let user = owned(name);
        let password = match (owned(&pass), owned(&passfile)) {
            (Some(_), Some(_)) => {
                values.problem(&pass, format!("conflicts with {passfile}; set only one of them"));
                return None;
            }
            (Some(password), None) => Some(password),
            (None, Some(file)) => match read_password(&file) {
                Ok(password) => Some(password),
                Err(why) => {
                    values.problem(&passfile, why);
                    return None;
                }
            },
            (None, None) => None,
        };
        let problem = match (user, password) {
            (None, None) => return None,
            (Some(user), Some(_)) if user.contains(':') => {
                format!("“{user}” contains a colon, which Basic auth forbids")
            }
            (Some(user), Some(password)) => return Some(Self::new(user, &password)),
            (Some(_), None) => format!(
                "the user has no password; set {passfile} to a file that contains it, or set {pass}"
            ),
            (None, Some(_)) => {
                format!("a password is set, but no user; for example {name}=builder")
            }
        };
        values.problem(name, problem);
        None
    }

    fn password(&self, password: &str) -> Choice {
        let digest: [u8; 32] = Sha256::digest(password).into();
        self.password_digest.ct_eq(&digest)
    }
}

/// Reads a password from a file, without one trailing newline.
fn read_password(file: &str) -> Result<String, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("cannot read {file}: {error}"))?;
    match text.strip_suffix('\n').unwrap_or(&text) {
        "" => Err(format!("the file {file} is empty")),
        password => Ok(password.to_owned()),
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The configured users.
#[derive(Debug, Clone, Default)]
pub struct Users {
    /// The user that may read; `None`: anyone may read.
    pub read: Option<Credentials>,
    /// The user that may upload and read.
    pub write: Option<Credentials>,
    /// Clients that may upload if no write user is set.
    pub anonymous: Writers,
    /// Whether clients with a certificate may read and upload.
    pub certificates: bool,
}

/// Clients that may upload without credentials if no write user is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Writers {
    /// Clients on this machine, if no users are configured. The default, so that a first upload needs
    /// no configuration.
    #[default]
    LocalOnly,
    /// All clients.
    Anyone,
    /// No client.
    Nobody,
}

/// What a client needs for one kind of access.
#[derive(Debug, Clone)]
pub enum Requirement {
    /// Nothing.
    Anyone,
    /// Nothing for clients on this machine; other clients are refused. The socket is local, but a request
    /// may have come through a proxy, so each request is checked too.
    Local,
    /// The credentials of one of these users, or a client certificate if these are enabled.
    User(Vec<Credentials>),
    /// A client certificate.
    Certificate,
    /// Always refused.
    Nobody,
}

/// What clients need to read and to write.
#[derive(Debug, Clone)]
pub struct Access {
    /// GET and HEAD.
    pub read: Requirement,
    /// Every other method.
    pub write: Requirement,
}

impl Users {
    /// The requirements for a socket; `local` is true for loopback and Unix sockets.
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
