//! `nix-cache-info`: properties of a cache, as `Key: value` lines
//! (Nix's `doc/manual/source/protocols/binary-cache/nix-cache-info.md`).

use std::fmt;

use super::StoreDir;

/// The contents of `nix-cache-info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// Store directory of all paths in the cache.
    pub store_dir: StoreDir,
    /// Whether clients may query many narinfos at once.
    pub want_mass_query: bool,
    /// Priority: clients query caches with lower numbers first. cache.nixos.org has 40.
    pub priority: u32,
}

impl Default for CacheInfo {
    fn default() -> Self {
        Self { store_dir: StoreDir::default(), want_mass_query: true, priority: 30 }
    }
}

impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StoreDir: {}", self.store_dir)?;
        writeln!(f, "WantMassQuery: {}", u8::from(self.want_mass_query))?;
        writeln!(f, "Priority: {}", self.priority)
    }
}

impl CacheInfo {
    /// Returns the `StoreDir` in the text of another cache, parsed as Nix parses it: the key ends at the
    /// first colon, the value is trimmed, the last value counts, and other keys and lines are ignored.
    pub fn store_dir_of(text: &str) -> Option<&str> {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(key, _)| *key == "StoreDir")
            .map(|(_, value)| value.trim())
            .next_back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_has_the_lines_that_nix_reads() {
        assert_eq!(
            CacheInfo::default().to_string(),
            "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"
        );
    }

    #[test]
    fn the_store_dir_of_an_uploaded_cache_info_is_found() {
        let own = CacheInfo::default().to_string();
        assert_eq!(CacheInfo::store_dir_of(&own), Some("/nix/store"));
        assert_eq!(CacheInfo::store_dir_of("StoreDir:/x \n"), Some("/x"));
        assert_eq!(CacheInfo::store_dir_of("<html>\n"), None);
    }
}
