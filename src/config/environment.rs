//! Reads the environment: all variables at start, and on SIGHUP the files that they name.

use std::collections::HashMap;
use std::ffi::OsString;

use super::problem::Problems;
use super::setting::{Parse, Setting};
use super::table::SETTINGS;
use super::typed::Config;
use super::values::Values;

/// Prefix of all variables.
pub const PREFIX: &str = "NIX_STORED_";

impl Config {
    /// Reads the environment of the process.
    pub fn from_env() -> Result<Self, Problems> {
        Self::from_vars(process_vars())
    }

    /// Reads `vars`; ignores names without [`PREFIX`].
    pub fn from_vars(vars: impl IntoIterator<Item = (String, String)>) -> Result<Self, Problems> {
        let mut values = read(vars);
        let mut config = Self::blank();
        for setting in SETTINGS {
            setting.parse(&mut config, &mut values);
        }
        values.finish(config)
    }

    /// Reloads the files that the environment names: passwords, certificates and keys can change in their
    /// files while the daemon runs. If a file is invalid, the previous value stays in use, and the error
    /// is returned.
    pub fn reread(&mut self) -> Result<(), Problems> {
        self.reread_vars(process_vars())
    }

    /// Like [`Config::reread`], with `vars` in place of the environment.
    pub fn reread_vars(
        &mut self,
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), Problems> {
        let mut values = read(vars);
        for setting in SETTINGS.iter().filter(|row| matches!(row.parse, Parse::Group(_))) {
            let mut reread = self.clone();
            let problems = values.problem_count();
            setting.parse(&mut reread, &mut values);
            if values.problem_count() == problems {
                *self = reread;
            }
        }
        values.finish(())
    }
}

/// The environment of the process.
fn process_vars() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        // Invalid UTF-8 becomes replacement characters, which no variable but PATH accepts.
        let text = |os: OsString| os.to_string_lossy().into_owned();
        (text(name), text(value))
    })
}

/// Reads the texts of all variables of the table. Unknown names and forbidden empty values become problems.
fn read(vars: impl IntoIterator<Item = (String, String)>) -> Values {
    let vars: Vec<(String, String)> = vars
        .into_iter()
        .filter(|(name, value)| {
            let forbids_empty = find(name).is_some_and(|setting| setting.if_empty.is_some());
            name.starts_with(PREFIX) && (!value.is_empty() || forbids_empty)
        })
        .collect();
    let texts: HashMap<String, String> = envy::prefixed(PREFIX)
        .from_iter(vars.iter().cloned())
        .expect("any text is a valid value of the map");
    let mut values = Values::default();
    for setting in SETTINGS {
        // envy returns names without the prefix, in lower case.
        let key = suffix(setting.name).to_ascii_lowercase();
        values.add(setting.name, setting.example, texts.get(&key).cloned());
    }
    for (name, value) in &vars {
        match find(name) {
            None => values.problem(name, unknown(name)),
            Some(setting) if !setting.is_supported() => {
                values.problem(name, "this build does not support the variable; unset it");
            }
            Some(Setting { if_empty: Some(why), .. }) if value.trim().is_empty() => {
                values.invalid(name, "", why);
            }
            Some(_) => {}
        }
    }
    values
}

/// The name of a variable without [`PREFIX`].
fn suffix(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The error for an unknown variable, with the nearest name that this build supports.
fn unknown(name: &str) -> String {
    // Without the prefix, which all names share.
    let likeness = |setting: &Setting| strsim::jaro_winkler(suffix(setting.name), suffix(name));
    let supported = SETTINGS.iter().filter(|setting| setting.is_supported());
    let nearest = supported.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    format!("unknown variable; did you mean {}?", nearest.map_or("", |setting| setting.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::LogLevel;
    use crate::nix::CacheInfo;

    fn read(vars: &[(&str, &str)]) -> Result<Config, Problems> {
        Config::from_vars(
            vars.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())),
        )
    }

    fn problems(vars: &[(&str, &str)]) -> String {
        read(vars).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_environment_is_a_valid_configuration() {
        let config = read(&[]).unwrap();
        assert_eq!(config.location.to_string(), "/var/lib/nixStored");
        assert_eq!(config.listen.to_string(), "127.0.0.1:8100");
        assert_eq!(config.cache_info, CacheInfo::default());
        assert_eq!(config.cache_info.priority, 30);
        assert_eq!(config.log_level, LogLevel::Info);
    }

    #[test]
    fn empty_means_unset() {
        let config = read(&[("PATH", ""), ("PRIORITY", ""), ("USER_READ", "")]).unwrap();
        assert_eq!(config.location.to_string(), "/var/lib/nixStored");
        assert_eq!(config.cache_info.priority, 30);
    }

    #[test]
    fn an_empty_list_of_trusted_keys_does_not_turn_off_signature_checks() {
        for empty in ["", " ", "\n"] {
            let printed = problems(&[("TRUSTED_PUBLIC_KEYS", empty)]);
            assert!(printed.contains("would turn off signature checks"), "{printed}");
        }
        #[cfg(feature = "upstream")]
        for empty in ["", "%20", ","] {
            let upstream = format!("https://cache.example.org?trusted-public-keys={empty}");
            let printed = problems(&[("UPSTREAMS", &upstream)]);
            assert!(printed.contains("would turn off signature checks"), "{printed}");
        }
    }

    #[test]
    fn every_variable_of_the_table_is_parsed() {
        for setting in SETTINGS {
            let suffix = suffix(setting.name);
            // A value that no variable but PATH accepts.
            let printed = read(&[(suffix, "\u{fffd}")]);
            match suffix {
                "PATH" => assert_eq!(printed.unwrap().location.to_string(), "\u{fffd}"),
                // A password without a user is an error of the user's variable.
                suffix => {
                    let name = suffix.strip_suffix("_PASS").unwrap_or(suffix);
                    assert!(printed.unwrap_err().to_string().contains(name), "{suffix}");
                }
            }
        }
    }

    #[test]
    fn all_errors_are_reported_at_once_each_with_an_example() {
        let printed = problems(&[
            ("PRIORITY", "first"),
            ("LISTEN_INTERFACE", "8100"),
            ("WANT_MASS_QUERY", "perhaps"),
            ("STORE_DIR", "nix/store"),
            ("LOG_LEVEL", "loud"),
            ("LOG_FORMAT", "xml"),
            ("USER_WRIET", "me"),
        ]);
        assert_eq!(printed.lines().count(), 7, "{printed}");
        for part in [
            "NIX_STORED_PRIORITY: “first”",
            "NIX_STORED_PRIORITY=30",
            "NIX_STORED_LISTEN_INTERFACE: “8100”",
            "NIX_STORED_WANT_MASS_QUERY: “perhaps”",
            "NIX_STORED_STORE_DIR: “nix/store”",
            "NIX_STORED_LOG_LEVEL: “loud”",
            "NIX_STORED_LOG_FORMAT: “xml”",
            "NIX_STORED_USER_WRIET: unknown variable; did you mean NIX_STORED_USER_WRITE?",
        ] {
            assert!(printed.contains(part), "{part} in {printed}");
        }
    }

    #[test]
    fn a_user_without_a_password_and_a_password_without_a_user_are_errors() {
        assert!(problems(&[("USER_READ", "me")]).contains("NIX_STORED_USER_READ_PASSFILE"));
        assert!(problems(&[("USER_WRITE_PASS", "x")]).contains("NIX_STORED_USER_WRITE"));
        let both = [("USER_READ", "me"), ("USER_READ_PASS", "x"), ("USER_READ_PASSFILE", "/y")];
        assert!(problems(&both).contains("set only one of them"));
        assert!(problems(&[("USER_READ", "a:b"), ("USER_READ_PASS", "x")]).contains("colon"));
        let same = [
            ("USER_READ", "me"),
            ("USER_READ_PASS", "x"),
            ("USER_WRITE", "me"),
            ("USER_WRITE_PASS", "x"),
        ];
        assert!(read(&same).is_ok());
    }

    #[test]
    fn a_password_file_loses_one_trailing_newline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let path = file.path().to_str().unwrap();
        let config = read(&[("USER_READ", "me"), ("USER_READ_PASSFILE", path)]).unwrap();
        assert!(config.users.read.unwrap().matches("me", "secret"));

        std::fs::write(file.path(), "\n").unwrap();
        let printed = problems(&[("USER_READ", "me"), ("USER_READ_PASSFILE", path)]);
        assert!(printed.contains("empty"), "{printed}");
        let printed = problems(&[("USER_READ", "me"), ("USER_READ_PASSFILE", "/does/not/exist")]);
        assert!(printed.contains("/does/not/exist"), "{printed}");
    }

    #[test]
    fn units_of_sizes_are_powers_of_1024() {
        for (text, bytes) in
            [("0", 0), ("17", 17), ("4K", 4096), ("2m", 2 << 20), ("3G", 3 << 30), ("1T", 1 << 40)]
        {
            let config = read(&[("MAX_UPLOAD_SIZE", text)]).unwrap();
            assert_eq!(config.admission.max_upload_size, Some(bytes), "{text}");
        }
        for text in ["G", "-1", "1.5G", "1GB", "1 G", "99999999999T"] {
            assert!(problems(&[("MIN_FREE_SPACE", text)]).contains(text), "{text}");
        }
    }

    #[test]
    fn an_error_quotes_the_invalid_one_of_several_public_keys() {
        let good = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        let config = read(&[("TRUSTED_PUBLIC_KEYS", &format!("{good}  {good}"))]).unwrap();
        assert_eq!(config.admission.trusted_public_keys.len(), 2);
        let printed = problems(&[("TRUSTED_PUBLIC_KEYS", &format!("{good} x:AAAA"))]);
        assert!(printed.contains("“x:AAAA”"), "{printed}");
    }

    #[test]
    fn debug_output_contains_no_password() {
        let config = read(&[("USER_READ", "me"), ("USER_READ_PASS", "hunter2")]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn an_invalid_file_leaves_the_previous_value_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name).to_str().unwrap().to_owned()
        };
        let vars = || {
            [
                ("NIX_STORED_USER_READ", "reader".to_owned()),
                ("NIX_STORED_USER_READ_PASSFILE", dir.path().join("read").display().to_string()),
                ("NIX_STORED_USER_WRITE", "builder".to_owned()),
                ("NIX_STORED_USER_WRITE_PASSFILE", dir.path().join("write").display().to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value))
        };
        file("read", "first\n");
        file("write", "one\n");
        let mut config = Config::from_vars(vars()).unwrap();
        let passwords_are = |config: &Config, read: &str, write: &str| {
            config.users.read.as_ref().unwrap().matches("reader", read)
                && config.users.write.as_ref().unwrap().matches("builder", write)
        };
        assert!(passwords_are(&config, "first", "one"));

        file("read", "second\n");
        file("write", "\n");
        let printed = config.reread_vars(vars()).unwrap_err().to_string();
        assert_eq!(printed.lines().count(), 1, "{printed}");
        assert!(printed.contains("NIX_STORED_USER_WRITE_PASSFILE"), "{printed}");
        assert!(passwords_are(&config, "second", "one"));

        file("write", "two");
        config.reread_vars(vars()).unwrap();
        assert!(passwords_are(&config, "second", "two"));
    }
}
