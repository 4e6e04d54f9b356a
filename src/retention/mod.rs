//! Keeps the cache within its limits without breaking a closure.
//!
//! `plan` is a pure function of the inventory, the pins, the limits and the time: it decides which
//! objects are removed, and in which order. `execute` executes the plan, and keeps objects that are
//! used meanwhile. `collector` runs one collection, and `schedule` runs collections at regular
//! intervals in the daemon. `removal` removes the paths that an operator names, `pins` stores the
//! paths that an operator wants to keep, and `preview` summarizes a plan.

mod collector;
mod execute;
mod pins;
mod plan;
mod preview;
mod removal;
mod schedule;

pub use collector::{CollectError, Collector, GcReport, POSITIVE_LOOKUP_TTL};
pub use execute::PlanOutcome;
pub use pins::{Pin, PinError, Pins};
pub use plan::{Analysis, KeepReason, Limits, Plan, Reason, Removal, Verdict};
pub use preview::{PlannedRemoval, RemovalName, RemovalSum};
pub use removal::{Referrers, Refusal, plan_removal};
