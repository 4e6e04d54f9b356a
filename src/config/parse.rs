//! The syntax of sizes, durations, switches and numbers: parsers, and their inverses. An error is the rest of
//! a sentence that begins with the value in quotes.

use std::time::Duration;

/// Parses a number of bytes: a whole number, optionally with a unit `K`, `M`, `G` or `T` (powers of 1024).
pub fn parse_size(text: &str) -> Result<u64, &'static str> {
    let (number, unit) = number_and_unit(text);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let bytes = number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
    bytes.ok_or("is not a whole number of bytes, optionally with a unit K, M, G or T")
}

/// Parses a duration: a positive whole number with a unit `s`, `m`, `h`, `d` or `w`.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let (number, unit) = number_and_unit(text);
    let unit = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        "w" => Some(7 * 86_400),
        _ => None,
    };
    let seconds = number.zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    let seconds = seconds.filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or("is not a whole number with a unit s, m, h, d or w")
}

/// Prints a number of bytes in the syntax of [`parse_size`], such as `200G`.
pub(super) fn show_size(bytes: u64) -> String {
    in_units(bytes, &[(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")], "")
}

/// Prints a duration in whole seconds in the syntax of [`parse_duration`], such as `90d`.
pub fn show_duration(duration: Duration) -> String {
    in_units(duration.as_secs(), &[(86_400, "d"), (3600, "h"), (60, "m")], "s")
}

/// Parses `1` or `0`, `true` or `false`, `yes` or `no`, `on` or `off`.
pub(super) fn parse_switch(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("is neither 1 nor 0"),
    }
}

/// Prints `1` or `0`.
pub(super) fn show_switch(on: bool) -> String {
    u8::from(on).to_string()
}

/// Parses a whole number.
pub(super) fn parse_number(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "is not a whole number from 0 to 4294967295")
}

/// A number in the largest of `units` that divides it.
fn in_units(number: u64, units: &[(u64, &str)], smallest: &str) -> String {
    let unit = units.iter().find(|(unit, _)| number > 0 && number.is_multiple_of(*unit));
    let (unit, name) = unit.copied().unwrap_or((1, smallest));
    format!("{}{name}", number / unit)
}

fn number_and_unit(text: &str) -> (Option<u64>, &str) {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    (plain.then(|| digits.parse().ok()).flatten(), &text[digits.len()..])
}
