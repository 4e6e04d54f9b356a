//! Location of the cache: a directory or a bucket.

use std::fmt;
use std::path::PathBuf;

#[cfg(feature = "s3")]
use super::bucket::Bucket;

/// Location of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    Directory(PathBuf),
    /// A bucket of an S3-compatible object store.
    #[cfg(feature = "s3")]
    Bucket(Bucket),
}

impl std::str::FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("s3://") {
            #[cfg(feature = "s3")]
            Some(rest) => Bucket::parse(rest).map(Self::Bucket),
            #[cfg(not(feature = "s3"))]
            Some(_) => Err("is a bucket; use a build with the cargo feature s3".to_owned()),
            None => Ok(Self::Directory(text.into())),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_the_scheme_s3_is_a_directory() {
        for text in ["/var/lib/nixStored", "relative", "s3:/x"] {
            assert_eq!(text.parse(), Ok(Location::Directory(text.into())));
        }
    }
}
