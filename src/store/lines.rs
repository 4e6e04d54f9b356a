//! Compares texts as sets of lines.

/// Whether all lines of `wanted` are in `text`.
pub(super) fn has_lines(text: &[u8], wanted: &[u8]) -> bool {
    fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
        text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii)
    }
    lines(wanted).all(|line| line.is_empty() || lines(text).any(|there| there == line))
}

#[cfg(test)]
mod tests {
    use super::has_lines;

    #[test]
    fn a_text_with_more_lines_has_the_wanted_lines() {
        let ours = b"StoreDir: /nix/store\nPriority: 30\n";
        assert!(has_lines(ours, ours));
        assert!(has_lines(b"# mine\nPriority: 30\r\nStoreDir: /nix/store", ours));
        assert!(!has_lines(b"StoreDir: /nix/store\nPriority: 3\n", ours));
        assert!(!has_lines(b"", ours));
    }
}
