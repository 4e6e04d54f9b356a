//! Reloads the files that the variables name. Passwords, certificates and keys can change in their files
//! while the daemon runs; its environment cannot.

use super::{Config, Problems, Raw, process_vars};

impl Config {
    /// Reloads the files that the environment names. If a file is invalid, the previous value stays in
    /// use, and the error is returned.
    pub fn reread(&mut self) -> Result<(), Problems> {
        self.reread_vars(process_vars())
    }

    /// Like [`Config::reread`], with `vars` in place of the environment.
    pub fn reread_vars(
        &mut self,
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), Problems> {
        let (raw, mut parser) = Raw::read(vars);
        parser.replace(&mut self.users.read, |parser| {
            parser.credentials("READ", raw.user_read, raw.user_read_pass, raw.user_read_passfile)
        });
        parser.replace(&mut self.users.write, |parser| {
            parser.credentials(
                "WRITE",
                raw.user_write,
                raw.user_write_pass,
                raw.user_write_passfile,
            )
        });
        #[cfg(feature = "tls")]
        parser.replace(&mut self.tls, |parser| {
            parser.tls(raw.tls_cert, raw.tls_key, raw.tls_client_ca)
        });
        #[cfg(feature = "upstream")]
        parser.replace(&mut self.upstreams.list, |parser| {
            parser.upstreams(raw.upstreams, raw.upstream_netrc)
        });
        parser.finish(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_stays_as_it_was() {
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
        let knows = |config: &Config, read: &str, write: &str| {
            config.users.read.as_ref().unwrap().matches("reader", read)
                && config.users.write.as_ref().unwrap().matches("builder", write)
        };
        assert!(knows(&config, "first", "one"));

        file("read", "second\n");
        file("write", "\n");
        let told = config.reread_vars(vars()).unwrap_err().to_string();
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains("NIX_STORED_USER_WRITE_PASSFILE"), "{told}");
        assert!(knows(&config, "second", "one"));

        file("write", "two");
        config.reread_vars(vars()).unwrap();
        assert!(knows(&config, "second", "two"));
    }
}
