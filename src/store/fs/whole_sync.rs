//! The file systems on which one `syncfs` replaces a sync of each file.
//!
//! `syncfs` has to write everything and to report write errors. Since 5.8, Linux reports
//! write errors (syncfs(2)), but only those of the file system itself: a file system on top of another
//! one (overlayfs) does not learn of the errors of the lower one. Linux does not always pass a `syncfs` to a file system in
//! user space (FUSE) or on a server (NFS, SMB). So this module lists the file systems whose `syncfs`
//! writes everything and reports write errors; on all others each file is synced.

use std::os::fd::AsFd;
use std::sync::OnceLock;

/// The oldest kernel whose `syncfs` reports write errors.
const KERNEL: (u32, u32) = (5, 8);

/// `f_type` of statfs(2): ext4 (and its predecessors), XFS, Btrfs, F2FS, bcachefs, tmpfs.
const FILE_SYSTEMS: [u64; 6] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0xca45_1a4e, 0x0102_1994];

/// Whether `syncfs` makes the files in `directory` durable and reports all write errors.
pub(super) fn is_reliable(directory: impl AsFd) -> bool {
    static RUNNING: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    let release = || version(&rustix::system::uname().release().to_string_lossy());
    let kernel = *RUNNING.get_or_init(release);
    rustix::fs::fstatfs(directory).is_ok_and(|disk| reports_errors(kernel, disk.f_type as u64))
}

fn reports_errors(kernel: Option<(u32, u32)>, file_system: u64) -> bool {
    // The type has 32 bits, which some architectures sign-extend.
    kernel.is_some_and(|kernel| kernel >= KERNEL)
        && FILE_SYSTEMS.contains(&(file_system & 0xffff_ffff))
}

/// Returns the first two numbers of a release like `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_kernels_and_local_file_systems_are_synced_as_a_whole() {
        const EXT4: u64 = 0xef53;
        for (release, is_new) in [
            ("5.8.0", true),
            ("5.7.19", false),
            ("6.1.0-18-amd64", true),
            ("10.0", true),
            ("4.19.0-microsoft-standard", false),
            ("2.6.60+18", false),
            ("unknown", false),
        ] {
            assert_eq!(reports_errors(version(release), EXT4), is_new, "{release}");
        }
        let fuse_nfs_smb_overlay_zfs_9p =
            [0x6573_5546, 0x6969, 0xff53_4d42, 0xfe53_4d42, 0x794c_7630, 0x2fc1_2fc1, 0x0102_1997];
        for file_system in fuse_nfs_smb_overlay_zfs_9p {
            assert!(!reports_errors(Some((6, 1)), file_system), "{file_system:x}");
        }
        // Btrfs, as 32-bit architectures report it.
        assert!(reports_errors(Some((6, 1)), 0xffff_ffff_9123_683e));
    }
}
