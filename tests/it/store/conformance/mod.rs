//! The contract of [`nix_stored::store::Store`], case by case, over every store there is.

/// Where the stores are, as seen without them.
mod site;

/// What is absent, put, replaced and taken aside.
mod objects;
mod private_files;
/// What goes in by parts.
mod uploads;
/// Parts of what comes out.
mod ranges;
/// Going through everything.
mod listing;
/// Use and removal.
mod uses;
/// Notes and the lock.
use site::Directory;
#[cfg(feature = "s3")]
use site::InBucket;
#[cfg(feature = "s3")]
pub use site::{KEYS, has_keys};

/// Makes every case a test of every store.
macro_rules! suite {
    ($($module:ident { $($case:ident)+ })+) => {
        mod directory {
            $($(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$module::$case(&super::Directory::new()).await;
            })+)+
        }

        #[cfg(feature = "s3")]
        mod bucket {
            $($(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                const NAME: &str = concat!(module_path!(), "::", stringify!($case));
                if let Some(site) = super::InBucket::of_a_folder(NAME) {
                    super::$module::$case(&site).await;
                }
            })+)+
        }

        #[cfg(feature = "s3")]
        mod prefix {
            $($(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                const NAME: &str = concat!(module_path!(), "::", stringify!($case));
                if let Some(site) = super::InBucket::below_a_prefix(NAME) {
                    super::$module::$case(&site).await;
                }
            })+)+
        }

        #[cfg(feature = "s3")]
        mod garage {
            $($(#[tokio::test(flavor = "multi_thread")]
            #[ignore = "needs Garage: tests/run --garage"]
            async fn $case() {
                const NAME: &str = concat!(module_path!(), "::", stringify!($case));
                if let Some(site) = super::InBucket::of_garage(NAME) {
                    super::$module::$case(&site).await;
                }
            })+)+
        }
    };
}

suite! {
    objects {
        what_is_absent_is_none_everywhere
        what_was_put_is_found_by_head_and_get_alike
        what_is_put_again_replaces_what_was_there
        odd_names_are_kept_as_they_are
        what_is_put_aside_is_the_one_that_was_looked_at
        what_is_stored_while_another_is_put_aside_stays
        what_is_put_aside_replaces_nothing_that_was_before
        what_was_stored_is_there_for_another_process
    }
    uploads {
        an_upload_of_any_size_arrives
        nothing_is_visible_before_it_is_committed
        an_upload_that_is_dropped_leaves_nothing
        an_upload_that_is_dropped_leaves_what_was_there
        two_uploads_of_one_object_leave_one_of_them_whole
        what_was_written_can_be_read_at_once_where_it_is_in_a_file
    }
    ranges {
        every_part_of_a_small_object_can_be_had
        every_part_of_a_large_object_can_be_had
        a_narinfo_is_in_memory_as_a_whole
        a_reader_sees_the_old_object_or_the_new_one
    }
    listing {
        everything_is_listed_with_what_is_known_of_it
        what_is_wanted_is_listed_with_its_content_up_to_the_largest_narinfo
        who_stops_listening_stops_nothing_else
    }
    uses {
        what_was_used_since_stays
        what_was_stored_since_stays
        what_nobody_used_is_removed
        what_was_removed_can_be_stored_again
        a_removal_and_a_use_at_the_same_time_agree
    }
    private_files {
        a_private_file_is_there_until_it_is_removed
        private_files_are_listed_by_folder
        the_collection_lock_has_one_holder_until_it_is_dropped
    }
}
