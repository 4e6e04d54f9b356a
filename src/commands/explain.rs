//! Why a path goes or stays, in words.

use std::fmt;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::output::{as_time, duration, size, time};
use crate::cache::gc::{Analysis, Kept, Limits, Pin, Reason, Verdict};
use crate::nix::{StoreDir, StorePathHash};

/// What a collection would make of one path.
#[derive(Debug, Serialize)]
pub(super) struct Explained {
    /// Its whole name; its hash part where it is not here.
    store_path: String,
    verdict: &'static str,
    reason: Option<Why>,
    /// The pin that keeps it.
    pin: Option<String>,
    /// The path that is pinned or was used: itself, or one that needs it.
    through: Option<String>,
    #[serde(serialize_with = "as_time_if_any")]
    last_used: Option<SystemTime>,
    #[serde(skip)]
    limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Why {
    Age,
    Size,
    Pinned,
    Recent,
    WithinLimits,
}

impl Explained {
    /// `verdict` about the path with this hash part.
    pub(super) fn new(
        hash: StorePathHash,
        verdict: Option<Verdict>,
        analysis: &Analysis<'_>,
        pins: &[Pin],
        limits: &Limits,
        store_dir: &StoreDir,
    ) -> Self {
        let inventory = analysis.inventory();
        let name = |place: usize| store_dir.join(&inventory.paths[place].store_path);
        let Some((verdict, place)) = verdict.zip(inventory.find(hash)) else {
            return Self {
                store_path: format!("{store_dir}/{hash}"),
                verdict: "absent",
                reason: None,
                pin: None,
                through: None,
                last_used: None,
                limits: *limits,
            };
        };
        let last_user = analysis.last_user(place);
        let (verdict, reason, through, pin) = match verdict {
            Verdict::Goes(Reason::Age) => ("goes", Why::Age, last_user, None),
            Verdict::Goes(_) => ("goes", Why::Size, last_user, None),
            Verdict::Stays(Kept::Pinned { pin, by }) => ("stays", Why::Pinned, by, Some(pin)),
            Verdict::Stays(Kept::Recent { by, .. }) => ("stays", Why::Recent, by, None),
            Verdict::Stays(Kept::WithinLimits { by, .. }) => ("stays", Why::WithinLimits, by, None),
        };
        Self {
            store_path: name(place),
            verdict,
            reason: Some(reason),
            pin: pin.map(|pin| pins[pin].name.clone()),
            through: Some(name(through)),
            last_used: Some(analysis.effective_use(place)),
            limits: *limits,
        }
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.store_path;
        let (Some(reason), Some(through), Some(used)) =
            (self.reason, &self.through, self.last_used)
        else {
            return writeln!(f, "{path} is not in the cache");
        };
        let used = time(used);
        let needs_it = match through == path {
            true => String::new(),
            false => format!(" through {through}, which needs it"),
        };
        write!(f, "{path} {}: ", self.verdict)?;
        match reason {
            Why::Age => {
                let age = self.limits.max_age.unwrap_or_default();
                writeln!(f, "the last use, at {used}{needs_it}, is more than {} ago", duration(age))
            }
            Why::Size => {
                let limit = size(self.limits.max_size.unwrap_or_default());
                writeln!(
                    f,
                    "the cache has more than {limit}, and this is among what has been unused the \
                     longest; the last use was at {used}{needs_it}"
                )
            }
            Why::Pinned => {
                let pin = self.pin.as_deref().unwrap_or_default();
                match through == path {
                    true => writeln!(f, "the pin {pin} names it"),
                    false => writeln!(f, "the pin {pin} names {through}, which needs it"),
                }
            }
            Why::Recent => writeln!(
                f,
                "the last use or upload, at {used}{needs_it}, is less than {} ago",
                duration(self.limits.grace)
            ),
            Why::WithinLimits => {
                writeln!(f, "no limit asks for it to go; the last use was at {used}{needs_it}")
            }
        }
    }
}

fn as_time_if_any<S: Serializer>(at: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => as_time(at, to),
        None => to.serialize_none(),
    }
}
