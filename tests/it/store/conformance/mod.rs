//! The contract of [`nix_stored::store::Store`], case by case, for every store.

/// Access to the storage without the store.
mod test_backend;

/// Absent, stored, replaced and quarantined objects.
mod objects;
/// Private files and the collection lock.
mod private_files;
/// Uploads in parts.
mod uploads;
/// Reads of ranges.
mod ranges;
/// Listing.
mod listing;
/// Uses and removals.
mod uses;

#[cfg(feature = "s3")]
use test_backend::BucketBackend;
use test_backend::DirectoryBackend;
#[cfg(feature = "s3")]
pub use test_backend::{KEYS, has_keys};

/// Makes every case a test of every store.
macro_rules! suite {
    ($($module:ident { $($case:ident)+ })+) => {
        mod directory {
            $($(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$module::$case(&super::DirectoryBackend::new()).await;
            })+)+
        }

        #[cfg(feature = "s3")]
        mod bucket {
            $($(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                const NAME: &str = concat!(module_path!(), "::", stringify!($case));
                if let Some(backend) = super::BucketBackend::of_a_folder(NAME) {
                    super::$module::$case(&backend).await;
                }
            })+)+
        }

        #[cfg(feature = "s3")]
        mod prefix {
            $($(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                const NAME: &str = concat!(module_path!(), "::", stringify!($case));
                if let Some(backend) = super::BucketBackend::below_a_prefix(NAME) {
                    super::$module::$case(&backend).await;
                }
            })+)+
        }

        #[cfg(feature = "s3")]
        mod garage {
            $($(#[tokio::test(flavor = "multi_thread")]
            #[ignore = "needs Garage: tests/run --garage"]
            async fn $case() {
                const NAME: &str = concat!(module_path!(), "::", stringify!($case));
                if let Some(backend) = super::BucketBackend::of_garage(NAME) {
                    super::$module::$case(&backend).await;
                }
            })+)+
        }
    };
}

suite! {
    objects {
        an_absent_object_is_none_in_every_operation
        head_and_get_return_the_stored_object
        a_second_put_replaces_the_object
        odd_names_are_stored_unchanged
        only_the_verified_version_is_quarantined
        an_object_stored_during_a_quarantine_is_kept
        a_quarantined_object_replaces_no_earlier_one
        a_stored_object_is_visible_to_another_process
    }
    uploads {
        an_upload_of_any_size_is_stored
        nothing_is_visible_before_it_is_committed
        an_upload_that_is_dropped_leaves_nothing
        an_upload_that_is_dropped_keeps_the_old_object
        two_uploads_of_one_object_leave_one_of_them_whole
        a_staged_file_can_be_read_while_it_is_written
    }
    ranges {
        every_range_of_a_small_object_can_be_read
        every_range_of_a_large_object_can_be_read
        a_narinfo_is_read_into_memory_completely
        a_reader_sees_the_old_object_or_the_new_one
    }
    listing {
        every_object_is_listed_with_its_metadata
        objects_are_listed_with_their_content_up_to_the_largest_narinfo
        a_dropped_listing_does_not_disturb_the_next
    }
    uses {
        an_object_used_since_the_plan_is_kept
        an_object_stored_since_the_plan_is_kept
        an_unused_object_is_removed
        a_removed_object_can_be_stored_again
        a_removal_sees_a_concurrent_use
    }
    private_files {
        a_private_file_is_there_until_it_is_removed
        private_files_are_listed_by_folder
        the_collection_lock_has_one_holder_until_it_is_dropped
    }
}
