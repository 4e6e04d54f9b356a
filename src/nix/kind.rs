//! Kinds of objects in a binary cache, for metrics.

/// The kind of object that a [`CachePath`](super::CachePath) names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// `nix-cache-info`
    CacheInfo,
    /// A narinfo.
    NarInfo,
    /// The listing of a NAR.
    Listing,
    /// A NAR.
    Nar,
    /// The log of a build.
    Log,
    /// A realisation.
    Realisation,
    /// A build trace.
    BuildTrace,
    /// The location of debug symbols.
    DebugInfo,
}

impl ObjectKind {
    /// All kinds, in the order of the variants.
    pub const ALL: [Self; 8] = [
        Self::CacheInfo,
        Self::NarInfo,
        Self::Listing,
        Self::Nar,
        Self::Log,
        Self::Realisation,
        Self::BuildTrace,
        Self::DebugInfo,
    ];

    /// The value of the metrics label `kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CacheInfo => "cache-info",
            Self::NarInfo => "narinfo",
            Self::Listing => "listing",
            Self::Nar => "nar",
            Self::Log => "log",
            Self::Realisation => "realisation",
            Self::BuildTrace => "build-trace",
            Self::DebugInfo => "debuginfo",
        }
    }

    /// The kind of object that a request path names, even if the name is invalid. Checks only the
    /// beginning and the end of the path, because it runs for each request.
    pub fn of_request(path: &str) -> Option<Self> {
        let key = path.trim_start_matches('/');
        match key.split_once('/') {
            None if key.ends_with(".narinfo") => Some(Self::NarInfo),
            Some(("nar", _)) => Some(Self::Nar),
            Some(("log", _)) => Some(Self::Log),
            Some(("realisations", _)) => Some(Self::Realisation),
            Some(("debuginfo", _)) => Some(Self::DebugInfo),
            Some((folder, _)) if folder.starts_with("build-trace-v") => Some(Self::BuildTrace),
            None if key.ends_with(".ls") => Some(Self::Listing),
            None if key == "nix-cache-info" => Some(Self::CacheInfo),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_every_kind_in_order_with_a_unique_label() {
        for (index, kind) in ObjectKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            let same = ObjectKind::ALL.into_iter().filter(|other| other.as_str() == kind.as_str());
            assert_eq!(same.count(), 1);
        }
        for path in ["/", "/metrics", "/nar", "/x/y", "/x/y.ls"] {
            assert_eq!(ObjectKind::of_request(path), None, "{path}");
        }
        let log = "//log/8ha1dhmx807czjczmwy078s4r9s254il-x.narinfo";
        assert_eq!(ObjectKind::of_request(log), Some(ObjectKind::Log));
    }
}
