//! Kinds of objects, by which they are counted.

/// What kind of object a [`CachePath`](super::CachePath) names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `nix-cache-info`
    CacheInfo,
    /// A narinfo.
    NarInfo,
    /// Which files a NAR holds.
    Listing,
    /// A NAR.
    Nar,
    /// The log of a build.
    Log,
    /// A realisation.
    Realisation,
    /// A build trace.
    BuildTrace,
    /// Where debug symbols are.
    DebugInfo,
}

impl Kind {
    /// Every kind, in the order of their places.
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

    /// The label under which objects of this kind are counted.
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

    /// The kind of object that a request asks for, whether or not there can be such a one: a look at
    /// the two ends of the path, and no more, because this is done for every request.
    pub fn asked_for(path: &str) -> Option<Self> {
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
    fn every_kind_has_its_place_and_a_label_of_its_own() {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
            let same = Kind::ALL.into_iter().filter(|other| other.as_str() == kind.as_str());
            assert_eq!(same.count(), 1);
        }
        for none in ["/", "/metrics", "/nar", "/x/y", "/x/y.ls"] {
            assert_eq!(Kind::asked_for(none), None, "{none}");
        }
        let log = "//log/8ha1dhmx807czjczmwy078s4r9s254il-x.narinfo";
        assert_eq!(Kind::asked_for(log), Some(Kind::Log));
    }
}
