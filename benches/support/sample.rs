//! Measurements, and statistics of them.

/// The measurement of a server in one turn.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// In the unit of its line.
    pub value: f64,
    /// The duration of the turn, in seconds.
    pub wall: f64,
    /// The server's CPU seconds in the turn.
    pub cpu: f64,
}

/// The median; for an even count, the mean of the two in the middle.
pub fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => numbers[count / 2],
        count => f64::midpoint(numbers[count / 2 - 1], numbers[count / 2]),
    }
}

/// The 99th percentile, reordering the numbers.
pub fn p99(numbers: &mut [u32]) -> u32 {
    if numbers.is_empty() {
        return 0;
    }
    let index = (numbers.len() * 99).div_ceil(100).saturating_sub(1);
    *numbers.select_nth_unstable(index).1
}
