//! Whether a timeline is what Perfetto's importer of JSON trace events takes.
//!
//! Its trace processor counts what it cannot import in `stats`, and shows the rest; here such an event fails the
//! drill. The rules are those of the Trace Event Format ("JSON Object Format") and of Perfetto's importer: which
//! fields each phase needs, times that are not negative, slices of one thread that nest, counters that are numbers.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// Fails at the first event that would not be imported.
pub(crate) fn judge(trace: &Value) -> Result<()> {
    let events = trace["traceEvents"].as_array().context("no traceEvents")?;
    let mut named = BTreeMap::new();
    let mut slices: BTreeMap<(u64, u64), Vec<(u64, u64)>> = BTreeMap::new();
    let mut used = Vec::new();
    for event in events {
        let whole = |key: &str| {
            event[key]
                .as_u64()
                .with_context(|| format!("{key}: {event}"))
        };
        ensure!(event["name"].is_string(), "no name: {event}");
        let process = whole("pid")?;
        match event["ph"].as_str() {
            Some("M") => {
                let thread = whole("tid")?;
                let known = ["process_name", "thread_name", "thread_sort_index"];
                ensure!(known.iter().any(|name| event["name"] == *name), "{event}");
                if event["name"] == "thread_name" {
                    let name = event["args"]["name"].as_str();
                    named.insert(thread, name.with_context(|| event.to_string())?);
                }
            }
            Some("X") => {
                let (thread, from, length) = (whole("tid")?, whole("ts")?, whole("dur")?);
                let track = slices.entry((process, thread)).or_default();
                track.push((
                    from,
                    from.checked_add(length).context("the time overflows")?,
                ));
                used.push(thread);
            }
            Some("i") => {
                whole("ts")?;
                ensure!(event["s"] == "t", "an instant of no thread: {event}");
                used.push(whole("tid")?);
            }
            Some("C") => {
                whole("ts")?;
                let values = event["args"]
                    .as_object()
                    .context("a counter without values")?;
                let numbers = values.values().all(Value::is_number);
                ensure!(!values.is_empty() && numbers, "no numbers: {event}");
            }
            other => anyhow::bail!("phase {other:?}: {event}"),
        }
    }
    for thread in used {
        ensure!(named.contains_key(&thread), "track {thread} has no name");
    }
    slices.into_values().try_for_each(nest)
}

/// Slices of one thread lie apart or inside each other; others are dropped by the importer.
fn nest(mut slices: Vec<(u64, u64)>) -> Result<()> {
    slices.sort_by_key(|(from, until)| (*from, std::cmp::Reverse(*until)));
    let mut around: Vec<u64> = Vec::new();
    for (from, until) in slices {
        while around.last().is_some_and(|end| *end <= from) {
            around.pop();
        }
        let inside = around.last().is_none_or(|end| until <= *end);
        ensure!(inside, "slices overlap at {from}");
        around.push(until);
    }
    Ok(())
}

/// Whether any event has this name.
pub(crate) fn has(trace: &Value, name: &str) -> bool {
    let events = trace["traceEvents"].as_array();
    events
        .into_iter()
        .flatten()
        .any(|event| event["name"] == name)
}
