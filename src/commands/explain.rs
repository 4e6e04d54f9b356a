//! `nix-stored gc --explain`: why a collection would remove or keep a path.

use std::fmt;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::output::{serialize_time, size, time};
use crate::config::show_duration;
use crate::nix::{StoreDir, StorePathHash};
use crate::retention::{Analysis, KeepReason, Limits, Pin, Reason, Verdict};

/// Verdict of a collection about one path, with its reason.
#[derive(Debug, Serialize)]
pub(super) struct ExplainOutput {
    /// The complete store path, or only its hash part if the path is absent.
    store_path: String,
    verdict: &'static str,
    reason: Option<ExplainReason>,
    /// Name of the pin that keeps the path.
    pin: Option<String>,
    /// The pinned or used path: the path itself, or one that depends on it.
    through: Option<String>,
    #[serde(serialize_with = "serialize_optional_time")]
    last_used: Option<SystemTime>,
    #[serde(skip)]
    limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ExplainReason {
    Age,
    Size,
    Pinned,
    Recent,
    WithinLimits,
}

impl ExplainOutput {
    /// `verdict` is about the path with the given hash part; `None` if the path is absent.
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
            Verdict::Removed(Reason::Age) => ("goes", ExplainReason::Age, last_user, None),
            // A plan by limits removes paths for one of the two reasons.
            Verdict::Removed(Reason::Size | Reason::Orphan | Reason::Request) => {
                ("goes", ExplainReason::Size, last_user, None)
            }
            Verdict::Kept(KeepReason::Pinned { pin, by }) => {
                ("stays", ExplainReason::Pinned, by, Some(pin))
            }
            Verdict::Kept(KeepReason::Recent { by, .. }) => {
                ("stays", ExplainReason::Recent, by, None)
            }
            Verdict::Kept(KeepReason::WithinLimits { by, .. }) => {
                ("stays", ExplainReason::WithinLimits, by, None)
            }
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

impl fmt::Display for ExplainOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.store_path;
        let (Some(reason), Some(through), Some(used)) =
            (self.reason, &self.through, self.last_used)
        else {
            return writeln!(f, "{path} is not in the cache");
        };
        let used = time(used);
        let dependent = match through == path {
            true => String::new(),
            false => format!(" through {through}, which depends on it"),
        };
        let verdict = match reason {
            ExplainReason::Age | ExplainReason::Size => "removed",
            ExplainReason::Pinned | ExplainReason::Recent | ExplainReason::WithinLimits => "kept",
        };
        write!(f, "{path} would be {verdict}: ")?;
        match reason {
            ExplainReason::Age => {
                let age = self.limits.max_age.unwrap_or_default();
                writeln!(
                    f,
                    "its last use, at {used}{dependent}, is more than {} ago",
                    show_duration(age)
                )
            }
            ExplainReason::Size => {
                let limit = size(self.limits.max_size.unwrap_or_default());
                writeln!(
                    f,
                    "the cache is larger than {limit}, and this path is among the least recently used; \
                     its last use was at {used}{dependent}"
                )
            }
            ExplainReason::Pinned => {
                let pin = self.pin.as_deref().unwrap_or_default();
                match through == path {
                    true => writeln!(f, "the pin {pin} names it"),
                    false => writeln!(f, "the pin {pin} names {through}, which depends on it"),
                }
            }
            ExplainReason::Recent => writeln!(
                f,
                "its last use or upload, at {used}{dependent}, is less than {} ago",
                show_duration(self.limits.grace)
            ),
            ExplainReason::WithinLimits => {
                writeln!(f, "no limit requires its removal; its last use was at {used}{dependent}")
            }
        }
    }
}

fn serialize_optional_time<S: Serializer>(
    at: &Option<SystemTime>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serialize_time(at, to),
        None => to.serialize_none(),
    }
}
