//! The formats of log lines. Each event is one line of limited length, whatever its values contain.

use std::error::Error;
use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::causes::with_causes;
use super::printable::{printable, printable_json};

/// Maximum length of a value, in bytes.
const MAX_VALUE: usize = 2 * 1024;

/// Maximum length of all values of a line, in bytes. With names, time and level, the line has less than
/// 8 KiB.
const MAX_VALUES: usize = 7 * 1024;

/// Length that each value may have even if the previous values have used up [`MAX_VALUES`], in bytes.
const MIN_VALUE: usize = 64;

/// Number of bytes left for the next values of a line.
struct ValueBudget(usize);

impl ValueBudget {
    /// Formats the next value with `value`, which receives the maximum length.
    fn next(&mut self, value: impl FnOnce(usize) -> String) -> String {
        let value = value(MAX_VALUE.min(self.0).max(MIN_VALUE));
        self.0 = self.0.saturating_sub(value.len());
        value
    }
}

/// Formats the fields of a text line.
pub(super) struct TextFields;

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let inner = DefaultVisitor::new(writer, true);
        let mut visitor = TextVisitor { inner, budget: ValueBudget(MAX_VALUES) };
        fields.record(&mut visitor);
        visitor.inner.finish()
    }
}

struct TextVisitor<'writer> {
    inner: DefaultVisitor<'writer>,
    budget: ValueBudget,
}

impl Visit for TextVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        let text = self.budget.next(|limit| printable(&text, limit).into_owned());
        self.inner.record_debug(field, &format_args!("{text}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            return self.record_debug(field, &format_args!("{value}"));
        }
        // The value is also cut before it is quoted, because quoting makes it longer.
        self.record_debug(field, &printable_quoted(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record_debug(field, &format_args!("{}", with_causes(value)));
    }
}

/// A text that will be quoted. A very long text is cut here, so that not all of it is quoted.
fn printable_quoted(value: &str) -> impl Debug + '_ {
    if value.len() > 4 * MAX_VALUE { printable(value, MAX_VALUE) } else { value.into() }
}

/// Formats an event as a line with a JSON object.
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        writer.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, "\",\"level\":\"{}\"", metadata.level())?;
        let mut visitor = JsonVisitor { writer, budget: ValueBudget(MAX_VALUES), result: Ok(()) };
        event.record(&mut visitor);
        visitor.entry("target", &json_string(metadata.target()));
        visitor.result?;
        visitor.writer.write_str("}\n")
    }
}

struct JsonVisitor<'writer> {
    writer: Writer<'writer>,
    budget: ValueBudget,
    result: fmt::Result,
}

impl JsonVisitor<'_> {
    /// Writes a field; the value must be JSON.
    fn entry(&mut self, name: &str, json: &str) {
        let name = name.strip_prefix("r#").unwrap_or(name);
        self.result = self.result.and_then(|()| write!(self.writer, ",\"{name}\":{json}"));
    }
}

/// A text as a JSON string.
fn json_string(text: &str) -> String {
    printable_json(&serde_json::Value::from(text).to_string()).into_owned()
}

impl Visit for JsonVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let json = self.budget.next(|limit| {
            // If the text fits with all its escapes, it is written unchanged.
            let json = if value.len() <= limit { json_string(value) } else { String::new() };
            let fits = (2..=limit + 2).contains(&json.len());
            // Otherwise it is cut; escaping quotes and backslashes at most doubles its length.
            if fits { json } else { json_string(&printable(value, limit / 2)) }
        });
        self.entry(field.name(), &json);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record_str(field, &with_causes(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.entry(field.name(), &value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.entry(field.name(), &value.to_string());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // NaN and infinities become null.
        self.entry(field.name(), &serde_json::Value::from(value).to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.entry(field.name(), &value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use tracing::{info, subscriber};
    use tracing_subscriber::fmt::MakeWriter;

    use super::super::printable::is_invisible;
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("outer \u{1b}[31m")]
    struct Outer(#[source] io::Error);

    /// The lines that are written for `events`, as text with colours and as JSON.
    fn written(events: impl Fn()) -> (String, String) {
        let text = Written::default();
        let builder = tracing_subscriber::fmt().with_ansi(true).fmt_fields(TextFields);
        subscriber::with_default(builder.with_writer(text.clone()).finish(), &events);
        let json = Written::default();
        let builder = tracing_subscriber::fmt().event_format(JsonLines);
        subscriber::with_default(builder.with_writer(json.clone()).finish(), &events);
        let lines = |written: Written| {
            String::from_utf8(std::mem::take(&mut *written.0.lock().unwrap())).unwrap()
        };
        (lines(text), lines(json))
    }

    #[test]
    fn plain_values_are_unchanged_and_colours_stay() {
        let (text, json) = written(|| {
            info!(method = %"GET", path = "/a\"b", status = 200_u16, took = 0.5, r#type = true, "served");
        });
        let coloured = "\u{1b}[32m INFO\u{1b}[0m";
        assert!(text.contains(coloured), "{text:?}");
        let plain = text.replace("\u{1b}[3m", "").replace("\u{1b}[2m", "").replace("\u{1b}[0m", "");
        let expected = "served method=GET path=\"/a\\\"b\" status=200 took=0.5 type=true\n";
        assert!(plain.ends_with(expected), "{plain}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(value["timestamp"].as_str().unwrap().ends_with('Z'));
        let rest = format!(
            "\"level\":\"INFO\",\"message\":\"served\",\"method\":\"GET\",\"path\":\"/a\\\"b\",\
             \"status\":200,\"took\":0.5,\"type\":true,\"target\":\"{}\"}}\n",
            module_path!()
        );
        assert!(json.ends_with(&rest), "{json}");
    }

    #[test]
    fn no_value_contains_line_breaks_or_terminal_escapes() {
        let nasty = "a\r\n\u{7f}\u{1b}[31m\u{9b}31m\u{202e}b";
        let (text, json) = written(|| {
            let error = Outer(io::Error::other(nasty));
            info!(shown = %nasty, quoted = nasty, error = &error as &dyn Error, "{nasty}");
        });
        // The escapes of colours are our own.
        let allowed = |text: &str| text.contains("[31m") && !text.contains("\u{1b}[31m");
        assert!(allowed(&text), "{text:?}");
        let plain = text.replace('\u{1b}', "");
        assert!(!plain.trim_end_matches('\n').contains(is_invisible), "{text:?}");
        assert!(!json.trim_end_matches('\n').contains(is_invisible), "{json:?}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        for name in ["message", "shown", "quoted"] {
            assert_eq!(value[name], nasty, "{name}");
        }
        assert_eq!(value["error"], format!("outer \u{1b}[31m: {nasty}"));
    }

    #[test]
    fn a_line_has_at_most_8_kib_whatever_its_values_contain() {
        for filling in ["x", "\"", "\\", "\u{1b}", "\u{202e}", "ä", "\u{e0041}"] {
            let long = filling.repeat(1_000_000);
            let (text, json) = written(|| {
                info!(
                    a = %long, b = long, c = %long, d = long, e = %long, f = long, g = %long,
                    last = "the end", "it begins {long}"
                );
            });
            for line in [&text, &json] {
                assert!(line.len() <= 8 * 1024, "{filling:?}: {}", line.len());
                assert!(line.contains("it begins") && line.contains("the end"), "{line}");
                assert!(line.contains("omitted"), "{line}");
            }
            serde_json::from_str::<serde_json::Value>(&json).unwrap();
        }
    }
}
