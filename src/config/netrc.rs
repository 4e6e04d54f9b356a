//! A netrc file, as curl and Nix read it: words, in which `machine`, `default`, `login` and
//! `password` mean something (`netrc(5)` of inetutils).

use super::upstream::Login;

/// The entries of a netrc file.
#[derive(Default)]
pub(super) struct Netrc(Vec<Entry>);

struct Entry {
    /// None: any.
    machine: Option<String>,
    login: Option<String>,
    password: Option<String>,
}

impl Netrc {
    /// Reads the words of `text`; those that mean nothing are passed over.
    pub(super) fn parse(text: &str) -> Self {
        let mut entries: Vec<Entry> = Vec::new();
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let mut words = lines.flat_map(str::split_whitespace);
        while let Some(word) = words.next() {
            let mut value = || words.next().map(str::to_owned);
            match (word, entries.last_mut()) {
                ("machine", _) => {
                    entries.push(Entry { machine: value(), login: None, password: None });
                }
                ("default", _) => {
                    entries.push(Entry { machine: None, login: None, password: None });
                }
                ("login", Some(entry)) => entry.login = value(),
                ("password", Some(entry)) => entry.password = value(),
                _ => {}
            }
        }
        Self(entries)
    }

    /// The login of the first entry for `host`.
    pub(super) fn login(&self, host: &str) -> Option<Login> {
        let entry =
            self.0.iter().find(|entry| entry.machine.as_deref().is_none_or(|it| it == host))?;
        Some(Login { user: entry.login.clone()?, password: entry.password.clone()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_for_a_machine_counts() {
        let netrc = Netrc::parse(
            "# machine a login no password no\nmachine a login me\n  password x\nmachine a login you \
             password y\nmachine b account z\ndefault login any password one",
        );
        let login = |host| netrc.login(host).map(|login| (login.user, login.password));
        assert_eq!(login("a"), Some(("me".into(), "x".into())));
        assert_eq!(login("b"), None);
        assert_eq!(login("c"), Some(("any".into(), "one".into())));
    }
}
