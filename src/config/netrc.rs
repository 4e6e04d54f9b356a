//! Parser for netrc files, compatible with curl and Nix (curl's `lib/netrc.c`). A netrc file is a sequence
//! of words; the keywords are `machine`, `default`, `login`, `password` and `macdef`. A word in double
//! quotes may contain white space and the escapes `\"`, `\\`, `\n`, `\r` and `\t`.

use std::fmt;

/// The entries of a netrc file.
#[derive(Debug, Default)]
pub struct Netrc(Vec<NetrcEntry>);

#[derive(Default)]
struct NetrcEntry {
    /// `None` for `default`, which matches every host.
    machine: Option<String>,
    login: Option<String>,
    password: Option<String>,
}

impl fmt::Debug for NetrcEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetrcEntry").field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Name of the user, without percent-encoding; may be empty.
    pub user: String,
    /// Password, without percent-encoding.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Result of a search for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetrcMatch {
    /// Credentials.
    Login(Login),
    /// There is an entry, but it has no password.
    NoPassword,
    /// There is no entry.
    Nothing,
}

impl Netrc {
    /// Parses `text`; ignores unknown words.
    pub fn parse(text: &str) -> Self {
        let mut entries: Vec<NetrcEntry> = Vec::new();
        let mut words = NetrcWords(text);
        while let Some(word) = words.next() {
            match (word.as_str(), entries.last_mut()) {
                ("machine", _) => {
                    entries.push(NetrcEntry { machine: words.next(), ..NetrcEntry::default() });
                }
                ("default", _) => entries.push(NetrcEntry::default()),
                // A macro ends at an empty line; its words are ignored.
                ("macdef", _) => words.skip_macro(),
                ("login", Some(entry)) => entry.login = words.next(),
                ("password", Some(entry)) => entry.password = words.next(),
                _ => {}
            }
        }
        Self(entries)
    }

    /// Finds the first entry for `host` with a password. Without a login, the user name is empty, as in
    /// curl: tokens of attic and cachix have no user name.
    pub fn find(&self, host: &str) -> NetrcMatch {
        let is_for = |entry: &&NetrcEntry| {
            entry.machine.as_deref().is_none_or(|machine| machine.eq_ignore_ascii_case(host))
        };
        let mut entries = self.0.iter().filter(is_for).peekable();
        if entries.peek().is_none() {
            return NetrcMatch::Nothing;
        }
        let login = entries.find_map(|entry| {
            let user = entry.login.clone().unwrap_or_default();
            Some(Login { user, password: entry.password.clone()? })
        });
        login.map_or(NetrcMatch::NoPassword, NetrcMatch::Login)
    }
}

/// Iterator over the words of a text.
struct NetrcWords<'a>(&'a str);

impl NetrcWords<'_> {
    /// Skips all text up to an empty line.
    fn skip_macro(&mut self) {
        let end = self.0.find("\n\n").or_else(|| self.0.find("\n\r\n"));
        self.0 = end.map_or("", |end| &self.0[end..]);
    }
}

impl Iterator for NetrcWords<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            self.0 = self.0.trim_start();
            if !self.0.starts_with('#') {
                break;
            }
            self.0 = self.0.split_once('\n').map_or("", |(_, rest)| rest);
        }
        if let Some(quoted) = self.0.strip_prefix('"') {
            let mut word = String::new();
            let mut characters = quoted.char_indices();
            while let Some((at, character)) = characters.next() {
                match character {
                    '"' => {
                        self.0 = &quoted[at + 1..];
                        return Some(word);
                    }
                    '\\' => match characters.next() {
                        Some((_, 'n')) => word.push('\n'),
                        Some((_, 'r')) => word.push('\r'),
                        Some((_, 't')) => word.push('\t'),
                        Some((_, other)) => word.push(other),
                        None => break,
                    },
                    other => word.push(other),
                }
            }
            // The closing quote is missing.
            self.0 = "";
            return Some(word);
        }
        let end = self.0.find(char::is_whitespace).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        (!word.is_empty()).then(|| word.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn login(text: &str, host: &str) -> Option<(String, String)> {
        match Netrc::parse(text).find(host) {
            NetrcMatch::Login(Login { user, password }) => Some((user, password)),
            NetrcMatch::NoPassword | NetrcMatch::Nothing => None,
        }
    }

    fn both(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.to_owned(), password.to_owned()))
    }

    #[test]
    fn the_first_entry_with_a_password_for_a_machine_counts() {
        let text = "# machine a login no password no\nmachine a login me\n  password x\nmachine a \
                    login you password y\nmachine b account z\ndefault login any password one";
        assert_eq!(login(text, "a"), both("me", "x"));
        assert_eq!(login(text, "A"), both("me", "x"));
        assert_eq!(login(text, "b"), both("any", "one"));
        assert_eq!(login(text, "c"), both("any", "one"));
    }

    #[test]
    fn a_password_without_a_login_is_sent_for_the_empty_user() {
        assert_eq!(login("machine a password token\n", "a"), both("", "token"));
        assert_eq!(Netrc::parse("machine a login me\n").find("a"), NetrcMatch::NoPassword);
        assert_eq!(Netrc::parse("machine a login me\n").find("b"), NetrcMatch::Nothing);
    }

    #[test]
    fn quotes_are_not_part_of_a_quoted_word() {
        let text = "machine a login \"m e\" password \"x\\\"\\\\y\\t#\" machine b password \"open";
        assert_eq!(login(text, "a"), both("m e", "x\"\\y\t#"));
        assert_eq!(login(text, "b"), both("", "open"));
        assert_eq!(login("machine a password in\"side", "a"), both("", "in\"side"));
    }

    #[test]
    fn macros_are_ignored() {
        let text = "machine a password x\nmacdef init\ncd password y\nmachine b password z\n\n\
                    machine c password w\n";
        assert_eq!(login(text, "a"), both("", "x"));
        assert_eq!(login(text, "b"), None);
        assert_eq!(login(text, "c"), both("", "w"));
    }

    proptest! {
        #[test]
        fn a_quoted_password_is_read_back(password in "[^\0]{1,20}") {
            let mut quoted = String::new();
            for character in password.chars() {
                if matches!(character, '"' | '\\') {
                    quoted.push('\\');
                }
                quoted.push(character);
            }
            let text = format!("machine a password \"{quoted}\" login me");
            prop_assert_eq!(login(&text, "a"), both("me", &password));
        }

        #[test]
        fn parsing_never_panics(text: String) {
            let _ = Netrc::parse(&text).find("a");
        }
    }
}
