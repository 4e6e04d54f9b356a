//! The memory budget of all decoders.
//!
//! The stream chooses the window of its decoder and the size that it unpacks to: a few hundred
//! bytes can demand gigabytes of memory and minutes of work. So each decoder runs with an
//! [`Allowance`] and a permit. A decoder that needs more than its allowance is stopped, and starts
//! again from the beginning with a larger allowance and another permit. The permits come from
//! shares that are [`DECODER_MEMORY`] together:
//!
//! - *arriving*: NARs that are unpacked during the transfer. No task waits for this share; a NAR
//!   without a permit is unpacked at rest.
//! - *at rest*: complete NARs. Unpacking them never waits for a client, so these permits are always
//!   returned.
//! - *large*: complete NARs that need a large window.
//! - *pages*: NARs whose files are listed, on threads of the lowest priority.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const MIB: u64 = 1 << 20;

/// The memory of all decoders together, in bytes.
pub(crate) const DECODER_MEMORY: u64 = 512 * MIB;

/// The memory of a decoder at first, in bytes: enough for `xz -6` (9 MiB), `zstd -19` (8 MiB), `brotli -w 22`.
const USUAL_MEMORY: u64 = 16 * MIB;

/// The second step: enough for `xz -9` (65 MiB) and `zstd` with a window of 64 MiB.
const LARGE_MEMORY: u64 = 72 * MIB;

/// The last step: enough for `zstd --ultra -22`, with a window of 128 MiB, the maximum of `zstd -d` without further
/// options.
const MOST_MEMORY: u64 = 136 * MIB;

/// The maximum number of NARs that are unpacked during their transfer.
const ARRIVING: u64 = 8;

/// The maximum number of complete streams that are unpacked at a time.
const AT_REST: u64 = 4;

/// The share *large*: one decoder with [`MOST_MEMORY`] and one with [`LARGE_MEMORY`], or three with
/// [`LARGE_MEMORY`].
const LARGE_SHARE: u64 = 224 * MIB;

/// The share *pages*: one decoder with [`LARGE_MEMORY`] and one with [`USUAL_MEMORY`].
const PAGES_SHARE: u64 = 96 * MIB;

const _: () = assert!(
    (ARRIVING + AT_REST) * USUAL_MEMORY + LARGE_SHARE + PAGES_SHARE == DECODER_MEMORY,
    "the shares add up to the budget"
);

/// Streams that unpack to more bytes than this, and to more than this many times their size, are
/// unpacked one at a time. Real files rarely do, and hundreds of uploads of such streams must not delay
/// other clients.
const USUAL_OUTPUT: u64 = 4 * MIB;
const USUAL_RATIO: u64 = 100;

/// A stream that unpacks to more bytes than this, and to more than this many times its size, is refused.
/// Among real files, sparse disk images have the highest ratios, and do not exceed both limits.
/// The two limits bound the cost of a hostile upload to some seconds of one core.
const MOST_OUTPUT: u64 = 8 << 30;
pub(crate) const BOMB_RATIO: u64 = 1000;

/// The limits of one decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    memory: u64,
    output: u64,
}

impl Allowance {
    /// The allowance that is enough for nearly all streams.
    pub const USUAL: Self = Self { memory: USUAL_MEMORY, output: USUAL_OUTPUT };

    /// The maximum memory in bytes.
    pub const fn memory(self) -> u64 {
        self.memory
    }

    /// Returns the maximum unpacked size for a packed size.
    pub fn output_of(self, packed: u64) -> u64 {
        let ratio = if self.output == USUAL_OUTPUT { USUAL_RATIO } else { BOMB_RATIO };
        self.output.max(packed.saturating_mul(ratio))
    }

    /// The next step with more memory, or `None` after the last.
    pub fn with_more_memory(self) -> Option<Self> {
        let memory = [LARGE_MEMORY, MOST_MEMORY].into_iter().find(|more| *more > self.memory)?;
        Some(Self { memory, ..self })
    }

    /// The same memory with the output limit of the first step.
    pub fn with_usual_output(self) -> Self {
        Self { output: USUAL_OUTPUT, ..self }
    }

    /// The next step with more output, or `None` after the last.
    pub fn with_more_output(self) -> Option<Self> {
        (self.output < MOST_OUTPUT).then_some(Self { output: MOST_OUTPUT, ..self })
    }
}

/// The memory and the threads of all decoders. A clone is the same budget.
#[derive(Debug, Clone)]
pub(crate) struct DecodeBudget {
    arriving: Arc<Semaphore>,
    at_rest: Arc<Semaphore>,
    /// In MiB.
    large: Arc<Semaphore>,
    /// For streams that unpack to much more than their size.
    expanding: Arc<Semaphore>,
    /// In MiB.
    pages: Arc<Semaphore>,
}

/// A permit to run a decoder with an allowance, until it is dropped.
#[derive(Debug)]
pub(crate) struct DecodePermit {
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Default for DecodeBudget {
    fn default() -> Self {
        let semaphore = |permits: u64| Arc::new(Semaphore::new(permits as usize));
        Self {
            arriving: semaphore(ARRIVING),
            at_rest: semaphore(AT_REST),
            large: semaphore(LARGE_SHARE / MIB),
            expanding: semaphore(1),
            pages: semaphore(PAGES_SHARE / MIB),
        }
    }
}

/// The semaphores are never closed.
async fn acquire(semaphore: &Arc<Semaphore>, permits: u64) -> Option<OwnedSemaphorePermit> {
    Arc::clone(semaphore).acquire_many_owned(permits as u32).await.ok()
}

impl DecodeBudget {
    /// Returns a permit for [`Allowance::USUAL`] during the transfer, or `None` if there is none
    /// immediately. The holder must return it if the transfer becomes slow.
    pub(crate) fn arriving(&self) -> Option<DecodePermit> {
        let permit = Arc::clone(&self.arriving).try_acquire_owned().ok()?;
        Some(DecodePermit { _permits: [Some(permit), None] })
    }

    /// Waits for a permit for complete input.
    pub(crate) async fn at_rest(&self, allowance: Allowance) -> DecodePermit {
        let expanding = match allowance.output {
            USUAL_OUTPUT => None,
            _ => acquire(&self.expanding, 1).await,
        };
        let memory = match allowance.memory {
            USUAL_MEMORY => acquire(&self.at_rest, 1).await,
            memory => acquire(&self.large, memory / MIB).await,
        };
        DecodePermit { _permits: [expanding, memory] }
    }

    /// Waits for a permit to list the files of a NAR. Returns `None` if the allowance exceeds the share
    /// of pages.
    pub(crate) async fn for_pages(&self, allowance: Allowance) -> Option<DecodePermit> {
        if allowance.memory > LARGE_MEMORY {
            return None;
        }
        let memory = acquire(&self.pages, allowance.memory / MIB).await;
        Some(DecodePermit { _permits: [memory, None] })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn each_step_of_an_allowance_is_larger_and_there_is_a_last_one() {
        let large = Allowance::USUAL.with_more_memory().unwrap();
        let most = large.with_more_memory().unwrap();
        assert!(Allowance::USUAL.memory < large.memory && large.memory < most.memory);
        assert_eq!(most.with_more_memory(), None);
        let expanding = most.with_more_output().unwrap();
        assert_eq!(expanding.memory, most.memory);
        assert_eq!(expanding.with_more_output(), None);
    }

    #[test]
    fn decoders_of_all_shares_fit_into_the_budget_and_further_ones_wait() {
        let budget = DecodeBudget::default();
        let large = Allowance::USUAL.with_more_memory().unwrap();
        let most = large.with_more_memory().unwrap();
        let mut permits = Vec::new();
        let mut memory = 0;
        while let Some(permit) = budget.arriving() {
            permits.push(permit);
            memory += Allowance::USUAL.memory;
        }
        for allowance in [Allowance::USUAL, most, large] {
            while let Some(permit) = budget.at_rest(allowance).now_or_never() {
                permits.push(permit);
                memory += allowance.memory;
            }
        }
        assert!(memory <= DECODER_MEMORY - PAGES_SHARE, "{memory}");
        assert_eq!(permits.len(), 8 + 4 + 2);
        permits.clear();
        assert!(budget.at_rest(most).now_or_never().is_some());
    }

    #[test]
    fn one_stream_at_a_time_unpacks_to_much_more_than_its_size() {
        let budget = DecodeBudget::default();
        let expanding = Allowance::USUAL.with_more_output().unwrap();
        let permit = budget.at_rest(expanding).now_or_never();
        assert!(permit.is_some() && budget.at_rest(expanding).now_or_never().is_none());
        // Other streams do not wait for it.
        assert!(budget.at_rest(Allowance::USUAL).now_or_never().is_some());
    }
}
