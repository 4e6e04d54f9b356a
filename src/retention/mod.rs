//! Keeps the cache within its limits without breaking a closure.
//!
//! `plan` is a pure function of the inventory, the pins, the limits and the time: it decides which
//! objects are removed, and in which order. `execute` executes the plan, and keeps objects that are
//! used meanwhile. `collector` does one collection, and `schedule` one after the other in the
//! daemon. `removal` removes the paths that an operator names, `pins` are paths that an operator
//! wants to keep, and `preview` prints a plan.

mod collector;
mod execute;
mod pins;
mod plan;
mod preview;
mod removal;
mod schedule;

pub use collector::{CLIENTS_REMEMBER, CollectError, Collector, Report};
pub use execute::Outcome;
pub use pins::{Pin, PinError, Pins};
pub use plan::{Analysis, Kept, Limits, Plan, Reason, Removal, Verdict};
pub use preview::{Going, Name, Sum};
pub use removal::{Referrers, Refusal, plan_removal};
