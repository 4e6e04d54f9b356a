//! The image: a bar for each row that is compared with nginx, longer if the daemon is better.
//!
//! It has no background, and colours that can be read on white and on black, because the page may
//! be light or dark.

use crate::side_by_side::line::{Goal, Line};

/// Colours of medium lightness.
const TEXT: &str = "#7a828e";
const MET: &str = "#2f9e6e";
const NOT_MET: &str = "#d9822b";

const WIDTH: f64 = 860.0;
const LABELS: f64 = 310.0;
const ROW: f64 = 26.0;
const TOP: f64 = 64.0;
/// The ratio of the widest bar. Larger ratios reach the edge, and are given as a number.
const WIDEST: f64 = 2.0;

/// Draws an SVG.
pub fn draw(lines: &[Line]) -> String {
    let rows: Vec<&Line> =
        lines.iter().filter(|line| !matches!(line.goal, Goal::AtMost(_))).collect();
    let height = TOP + ROW * rows.len() as f64 + 34.0;
    let unit = (WIDTH - LABELS - 60.0) / WIDEST;
    let nginx = LABELS + unit;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" \
         font-size=\"13\" fill=\"{TEXT}\">\n\
         <title>nix-stored compared with nginx</title>\n\
         <text x=\"0\" y=\"18\" font-size=\"16\" font-weight=\"600\">nix-stored compared with nginx: \
         longer is better</text>\n\
         <text x=\"{nginx}\" y=\"{y}\" text-anchor=\"middle\">nginx = 1</text>\n",
        y = TOP - 12.0,
    );
    for (index, line) in rows.iter().enumerate() {
        let top = TOP + ROW * index as f64;
        let advantage = line.advantage();
        let length = unit * advantage.clamp(0.0, WIDEST);
        let colour = if line.met() { MET } else { NOT_MET };
        svg += &format!(
            "<text x=\"{label}\" y=\"{text}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"{LABELS}\" y=\"{bar}\" width=\"{length:.1}\" height=\"16\" rx=\"2\" \
             fill=\"{colour}\"/>\
             <text x=\"{WIDTH}\" y=\"{text}\" text-anchor=\"end\">{advantage:.2} ×</text>\n",
            label = LABELS - 10.0,
            text = top + 17.0,
            bar = top + 4.0,
            name = plain(&line.short),
        );
    }
    let bottom = TOP + ROW * rows.len() as f64;
    svg += &format!(
        "<line x1=\"{nginx}\" y1=\"{y1}\" x2=\"{nginx}\" y2=\"{bottom}\" stroke=\"{TEXT}\" \
         stroke-dasharray=\"4 3\"/>\n",
        y1 = TOP - 6.0,
    );
    let legend = bottom + 24.0;
    svg += &format!(
        "<rect x=\"{LABELS}\" y=\"{y}\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{MET}\"/>\
         <text x=\"{met}\" y=\"{legend}\">goal met</text>\
         <rect x=\"{other}\" y=\"{y}\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{NOT_MET}\"/>\
         <text x=\"{not}\" y=\"{legend}\">not met</text>\n</svg>\n",
        y = legend - 11.0,
        met = LABELS + 18.0,
        other = LABELS + 100.0,
        not = LABELS + 118.0,
    );
    svg
}

/// A label as SVG text, without Markdown.
fn plain(label: &str) -> String {
    label.replace('`', "").replace('&', "&amp;").replace('<', "&lt;")
}
