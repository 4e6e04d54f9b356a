//! An index of the names, referrers and upload times of all paths, in about 150 bytes per path.

use std::cmp::Reverse;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use crate::inventory::{Inventory, Stats};
use crate::nix::StorePathHash;

/// How many days are looked back on.
pub const DAYS: usize = 90;

const SECONDS_A_DAY: u64 = 86_400;

/// An index of the paths of a cache.
#[derive(Debug)]
pub struct Index {
    /// By name, and of one name the newest first.
    entries: Vec<Entry>,
    /// The names in this order, each with a line feed after it.
    names: String,
    /// The same in lower case, to be searched.
    lower: String,
    /// The places of the entries by their hash parts.
    by_hash: Vec<u32>,
    /// The places of the entries, the newest first.
    by_upload: Vec<u32>,
    /// The places of what refers to each entry, one entry after the other.
    referrers: Vec<u32>,
    /// Where the referrers of each entry end.
    referrers_end: Vec<u32>,
    stats: Stats,
    days: Days,
    made: SystemTime,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: StorePathHash,
    /// Where its name begins.
    name: u32,
    size: u64,
    uploaded: Seconds,
    used: Seconds,
    mirrored: bool,
}

/// Seconds since 1970, until 2106.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Seconds(u32);

/// A store path in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Its hash part.
    pub hash: StorePathHash,
    /// Its name.
    pub name: &'a str,
    /// Bytes in it and in everything that belongs to it.
    pub size: u64,
    /// When its narinfo was written.
    pub uploaded: SystemTime,
    /// When it was used last.
    pub used: SystemTime,
    /// Whether it was mirrored from an upstream, and not uploaded since.
    pub mirrored: bool,
}

/// How many paths there are by day, for the last [`DAYS`] days in UTC; the last of them is today.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Days {
    /// When the first day began.
    pub first: SystemTime,
    /// Paths that were uploaded on each day.
    pub uploaded: [u32; DAYS],
    /// Paths that were used on each day for the last time.
    pub used: [u32; DAYS],
}

impl Index {
    /// The index of what there was just now.
    pub fn new(inventory: &Inventory, now: SystemTime) -> Self {
        let paths = &inventory.paths;
        let mut order: Vec<u32> = (0..to_u32(paths.len())).collect();
        order.sort_unstable_by_key(|&at| {
            let path = &paths[at as usize];
            (path.store_path.name(), Reverse(path.uploaded), path.store_path.hash())
        });

        let length: usize = paths.iter().map(|path| path.store_path.name().len() + 1).sum();
        let mut names = String::with_capacity(length);
        let mut place_of = vec![0; paths.len()];
        let mut entries = Vec::with_capacity(paths.len());
        let mut days = Days::until(now);
        for (place, &at) in order.iter().enumerate() {
            let path = &paths[at as usize];
            let used = inventory.used(at as usize);
            days.count(path.uploaded, used);
            place_of[at as usize] = to_u32(place);
            entries.push(Entry {
                hash: path.store_path.hash(),
                name: to_u32(names.len()),
                size: inventory.whole_size(at as usize),
                uploaded: path.uploaded.into(),
                used: used.into(),
                mirrored: path.mirrored,
            });
            names.push_str(path.store_path.name());
            names.push('\n');
        }

        let places = || (0..to_u32(entries.len())).collect::<Vec<u32>>();
        let (mut by_hash, mut by_upload) = (places(), places());
        by_hash.sort_unstable_by_key(|&place| entries[place as usize].hash);
        // Of those that came at the same time, by name.
        by_upload.sort_by_key(|&place| Reverse(entries[place as usize].uploaded));

        // Counted first, then each put before the end of its place.
        let references = || {
            let each = paths.iter().enumerate();
            each.flat_map(|(at, path)| path.references.iter().map(move |&to| (at, to as usize)))
        };
        let mut referrers_end = vec![0; paths.len()];
        references().for_each(|(_, to)| referrers_end[place_of[to] as usize] += 1);
        let mut sum = 0;
        for end in &mut referrers_end {
            sum += *end;
            *end = sum;
        }
        let mut next = referrers_end.clone();
        let mut referrers = vec![0; sum as usize];
        for (at, to) in references() {
            let next = &mut next[place_of[to] as usize];
            *next -= 1;
            referrers[*next as usize] = place_of[at];
        }

        let lower = names.to_ascii_lowercase();
        let mut index = Self {
            entries,
            names,
            lower,
            by_hash,
            by_upload,
            referrers,
            referrers_end,
            stats: Stats::of(inventory),
            days,
            made: now,
        };
        for place in 0..index.entries.len() {
            let range = index.referrers_range(place);
            index.referrers[range].sort_unstable();
        }
        index
    }

    /// When it was made.
    pub fn made(&self) -> SystemTime {
        self.made
    }

    /// What there is, in numbers.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Uploads and uses by day.
    pub fn days(&self) -> &Days {
        &self.days
    }

    /// The places of all paths, the newest first.
    pub fn newest(&self) -> &[u32] {
        &self.by_upload
    }

    /// The places of the paths whose name has every word of `query` in it, whatever the case: first
    /// those that begin with the first word, and then by name. Without a word, all, the newest first.
    pub fn search(&self, query: &str) -> Vec<u32> {
        let query = query.to_ascii_lowercase();
        let words: Vec<&str> = query.split_whitespace().collect();
        let (Some(first), Some(longest)) =
            (words.first(), words.iter().max_by_key(|word| word.len()))
        else {
            return self.by_upload.clone();
        };
        let mut found = Vec::new();
        let mut end = 0;
        for (at, _) in self.lower.match_indices(longest) {
            // Several times in one name counts once.
            if at < end {
                continue;
            }
            let place = self.entries.partition_point(|entry| entry.name as usize <= at) - 1;
            let name = self.name_range(place);
            end = name.end;
            if words.iter().all(|word| self.lower[name.clone()].contains(word)) {
                found.push(to_u32(place));
            }
        }
        // Stable: otherwise they stay in order.
        found.sort_by_key(|&place| !self.lower[self.name_range(place as usize)].starts_with(first));
        found
    }

    /// The place of the path with this hash part.
    pub fn find(&self, hash: StorePathHash) -> Option<u32> {
        let hash_at = |&place: &u32| self.entries[place as usize].hash;
        let at = self.by_hash.binary_search_by_key(&hash, hash_at).ok()?;
        Some(self.by_hash[at])
    }

    /// The path at a place.
    pub fn row(&self, place: u32) -> Row<'_> {
        let entry = self.entries[place as usize];
        Row {
            hash: entry.hash,
            name: &self.names[self.name_range(place as usize)],
            size: entry.size,
            uploaded: entry.uploaded.into(),
            used: entry.used.into(),
            mirrored: entry.mirrored,
        }
    }

    /// The places of what refers to the path at a place, itself left out, by name.
    pub fn referrers(&self, place: u32) -> &[u32] {
        &self.referrers[self.referrers_range(place as usize)]
    }

    fn referrers_range(&self, place: usize) -> Range<usize> {
        let begin = place.checked_sub(1).map_or(0, |before| self.referrers_end[before]);
        begin as usize..self.referrers_end[place] as usize
    }

    /// Where the name of an entry is among the names, its line feed left out.
    fn name_range(&self, place: usize) -> Range<usize> {
        let next =
            self.entries.get(place + 1).map_or(self.names.len(), |entry| entry.name as usize);
        self.entries[place].name as usize..next - 1
    }
}

impl Days {
    fn until(now: SystemTime) -> Self {
        let today = Seconds::from(now).day();
        let first = today.saturating_sub(DAYS as u64 - 1) * SECONDS_A_DAY;
        Self {
            first: SystemTime::UNIX_EPOCH + Duration::from_secs(first),
            uploaded: [0; DAYS],
            used: [0; DAYS],
        }
    }

    fn count(&mut self, uploaded: SystemTime, used: SystemTime) {
        let first = Seconds::from(self.first).day();
        for (time, counts) in [(uploaded, &mut self.uploaded), (used, &mut self.used)] {
            let day = Seconds::from(time).day().checked_sub(first);
            if let Some(count) = day.and_then(|day| counts.get_mut(day as usize)) {
                *count += 1;
            }
        }
    }
}

impl Seconds {
    fn day(self) -> u64 {
        u64::from(self.0) / SECONDS_A_DAY
    }
}

impl From<SystemTime> for Seconds {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(u32::try_from(since.as_secs()).unwrap_or(u32::MAX))
    }
}

impl From<Seconds> for SystemTime {
    fn from(seconds: Seconds) -> Self {
        Self::UNIX_EPOCH + Duration::from_secs(u64::from(seconds.0))
    }
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).expect("fewer objects, and fewer bytes in names, than u32 has numbers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{HeldObject, HeldPath};
    use crate::nix::StorePath;

    fn held(number: u32, name: &str, references: &[u32], uploaded: u64) -> HeldPath {
        let mut bytes = [0; 20];
        // Hash parts in another order than the numbers.
        bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_le_bytes());
        bytes[4..8].copy_from_slice(&number.to_le_bytes());
        let store_path: StorePath =
            format!("{}-{name}", StorePathHash::new(bytes)).parse().unwrap();
        let uploaded = SystemTime::UNIX_EPOCH + Duration::from_secs(uploaded);
        HeldPath {
            store_path,
            nar: None,
            log: None,
            references: references.into(),
            sides: Vec::new(),
            size: u64::from(number),
            nar_size: 1,
            mirrored: number % 2 == 1,
            uploaded,
            used: uploaded,
        }
    }

    fn index(paths: Vec<HeldPath>, now: u64) -> Index {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
        Index::new(&Inventory::new(paths, Vec::new(), Vec::new()), now)
    }

    fn names(index: &Index, places: &[u32]) -> Vec<String> {
        places.iter().map(|&place| index.row(place).name.to_owned()).collect()
    }

    #[test]
    fn names_are_found_by_all_words_and_those_that_begin_with_the_first_come_first() {
        let list = ["zlib-1.3", "python3.12-Zlib", "zlib-1.2", "hello", "hello-hello-doc"];
        let paths = list.iter().zip(0..).map(|(name, number)| held(number, name, &[], 9)).collect();
        let index = index(paths, 9);
        let found = |query: &str| names(&index, &index.search(query));
        assert_eq!(found("zlib"), ["zlib-1.2", "zlib-1.3", "python3.12-Zlib"]);
        assert_eq!(found("ZLIB 1.3"), ["zlib-1.3"]);
        assert_eq!(found("3.12 zlib"), ["python3.12-Zlib"]);
        assert_eq!(found("hello"), ["hello", "hello-hello-doc"]);
        assert_eq!(found("1.3 nothing"), [""; 0]);
        // A word does not reach over the end of a name.
        assert_eq!(found("hellohello"), [""; 0]);
        assert_eq!(found(" ").len(), 5);
    }

    #[test]
    fn of_one_name_and_of_all_the_newest_come_first() {
        let paths = vec![
            held(0, "a", &[], 10),
            held(1, "b", &[], 30),
            held(2, "a", &[], 20),
            held(3, "c", &[], 5),
        ];
        let index = index(paths, 40);
        let sizes: Vec<u64> = index.search("a").iter().map(|&at| index.row(at).size).collect();
        assert_eq!(sizes, [2, 0]);
        assert_eq!(names(&index, index.newest()), ["b", "a", "a", "c"]);
        assert!(index.row(index.newest()[0]).mirrored);
    }

    #[test]
    fn each_path_knows_who_refers_to_it() {
        let paths = vec![
            held(0, "glibc", &[], 1),
            held(1, "app", &[0, 2], 1),
            held(2, "bash", &[0], 1),
            held(3, "zsh", &[0], 1),
        ];
        let hashes: Vec<StorePathHash> = paths.iter().map(|path| path.store_path.hash()).collect();
        let index = index(paths, 1);
        let referrers = |number: usize| {
            let place = index.find(hashes[number]).unwrap();
            names(&index, index.referrers(place))
        };
        assert_eq!(referrers(0), ["app", "bash", "zsh"]);
        assert_eq!(referrers(1), [""; 0]);
        assert_eq!(referrers(2), ["app"]);
        assert_eq!(referrers(3), [""; 0]);
        assert_eq!(index.find(StorePathHash::new([7; 20])), None);
    }

    #[test]
    fn days_are_counted_up_to_today() {
        let day = SECONDS_A_DAY;
        let today = 20_000 * day;
        let times = [today, today + 5, today - 1, today - (DAYS as u64 - 1) * day];
        let outside = [today - (DAYS as u64 - 1) * day - 1, today + day];
        let paths = times.iter().chain(&outside).zip(0..).map(|(&at, n)| held(n, "x", &[], at));
        let days = index(paths.collect(), today + 60).days().clone();
        assert_eq!(days.uploaded[DAYS - 2..], [1, 2]);
        assert_eq!(days.uploaded[0], 1);
        assert_eq!(days.uploaded.iter().sum::<u32>(), 4);
        assert_eq!(days.used, days.uploaded);
    }

    #[test]
    fn sizes_and_uses_are_those_of_the_nar_too() {
        let nar = format!("nar/{:0>52}.nar.xz", 1).parse().unwrap();
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(50);
        let nar = HeldObject { path: nar, sides: Vec::new(), size: 1000, used };
        let mut path = held(4, "x", &[], 10);
        path.nar = Some(0);
        let inventory = Inventory::new(vec![path], vec![nar], Vec::new());
        let index = Index::new(&inventory, used);
        let row = index.row(0);
        assert_eq!((row.size, row.used), (1004, used));
    }

    /// A quarter of 200,000 paths, with names and references as long and as many as those of real ones.
    #[test]
    fn a_large_cache_takes_less_than_60_mb() {
        let count = 50_000_u32;
        let paths = (0..count).map(|number| {
            let references: Vec<u32> =
                (1..=12).map(|n| number.wrapping_mul(n * 7919) % count).collect();
            held(number, &format!("python3.12-some-package-{number}-1.2.3"), &references, 1)
        });
        let index = index(paths.collect(), 1);
        let bytes = index.entries.capacity() * size_of::<Entry>()
            + index.names.capacity()
            + index.lower.capacity()
            + (index.by_hash.capacity() + index.by_upload.capacity()) * size_of::<u32>()
            + (index.referrers.capacity() + index.referrers_end.capacity()) * size_of::<u32>();
        assert!(bytes < 60_000_000 / 4, "{bytes}");
        assert_eq!(index.search("package-12345-").len(), 1);
    }
}
