//! Any text is a valid netrc file, and a password that is written to one is read back.

#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use nix_stored::config::{NetrcMatch, Netrc};

#[derive(Debug, Arbitrary)]
struct Entry {
    login: Option<String>,
    password: String,
}

/// A word in quotes, in the syntax of curl.
fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Netrc::parse(text).find("cache.example.org");
    }
    let Ok(Entry { login, password }) = Entry::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    let user = login.as_deref().map(|login| format!("login {}", quoted(login))).unwrap_or_default();
    let text = format!("machine cache.example.org {user} password {}\n", quoted(&password));
    match Netrc::parse(&text).find("cache.example.org") {
        NetrcMatch::Login(found) => {
            assert_eq!(found.user, login.unwrap_or_default());
            assert_eq!(found.password, password);
        }
        other => panic!("{other:?} in {text:?}"),
    }
});
