//! Credentials and region from `~/.aws`, the files of Amazon's command line
//! (<https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>).

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::{fs, io};

/// The settings of a profile, from both files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Profile(HashMap<String, String>);

impl Profile {
    /// Reads a profile. Returns `None` if neither file has it.
    pub(super) fn read(name: &str) -> io::Result<Option<Self>> {
        let mut profile = None;
        let files = [
            ("AWS_CONFIG_FILE", "config", ProfileFile::Config),
            ("AWS_SHARED_CREDENTIALS_FILE", "credentials", ProfileFile::Credentials),
        ];
        for (variable, file, kind) in files {
            let Some(path) = path(std::env::var_os(variable), file) else {
                continue;
            };
            match fs::read_to_string(&path) {
                Ok(text) => collect(&text, kind, name, &mut profile),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let message = format!("cannot read {}: {error}", path.display());
                    return Err(io::Error::new(error.kind(), message));
                }
            }
        }
        Ok(profile)
    }

    /// Returns a setting.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Returns an unsupported source of credentials in the profile.
    pub(super) fn unsupported(&self) -> Option<&str> {
        let ways = ["credential_process", "sso_session", "sso_start_url", "role_arn"];
        ways.into_iter().find(|way| self.0.contains_key(*way))
    }
}

fn path(given: Option<OsString>, file: &str) -> Option<PathBuf> {
    given.map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".aws").join(file)))
}

/// The file, because the two files name their sections differently.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ProfileFile {
    Config,
    Credentials,
}

/// Adds the settings of a profile in `text`, which replace earlier ones.
fn collect(text: &str, kind: ProfileFile, name: &str, profile: &mut Option<Profile>) {
    let mut within = false;
    for line in text.lines() {
        // Comments and nested settings, which are indented, are skipped.
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            let section = section.trim();
            within = match section.strip_prefix("profile ") {
                Some(section) if kind == ProfileFile::Config => section.trim() == name,
                _ => section == name && (kind == ProfileFile::Credentials || name == "default"),
            };
            if within {
                profile.get_or_insert_default();
            }
        } else if let (true, Some(profile), Some((key, value))) =
            (within, profile.as_mut(), line.split_once('='))
        {
            profile.0.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(files: &[(&str, ProfileFile)], name: &str) -> Option<Profile> {
        let mut profile = None;
        for (text, kind) in files {
            collect(text, *kind, name, &mut profile);
        }
        profile
    }

    #[test]
    fn a_profile_comes_from_both_files() {
        let config = "[default]\nregion = eu\n[profile ci]\nregion=us\ns3 =\n  region = no\n";
        let credentials = "# mine\n[ci]\naws_access_key_id = key\naws_secret_access_key=a=b\n";
        let files = [(config, ProfileFile::Config), (credentials, ProfileFile::Credentials)];
        let profile = collected(&files, "ci").unwrap();
        assert_eq!(profile.get("region"), Some("us"));
        assert_eq!(profile.get("aws_access_key_id"), Some("key"));
        assert_eq!(profile.get("aws_secret_access_key"), Some("a=b"));
        assert_eq!(collected(&files, "default").unwrap().get("region"), Some("eu"));
        assert_eq!(collected(&files, "other"), None);
    }

    #[test]
    fn an_unsupported_source_of_credentials_is_reported() {
        let files = [("[default]\nsso_session = work\n", ProfileFile::Config)];
        assert_eq!(collected(&files, "default").unwrap().unsupported(), Some("sso_session"));
    }
}
