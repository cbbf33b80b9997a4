//! `stats`: what enclaves and arenas have counted, in all or per second.
//!
//! Counters come from the VMMs and the broker, which only add to them; nothing is
//! reset by looking. What ended between two looks is left out of the second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use enclave_vmm::control::protocol::Inspection;
use enclave_vmm::failure::{Class, Failure};
use serde_json::{Map, Value, json};
use xemem_host::{SegmentInfo, SegmentKind, placement_name, policy_name};

use super::openmetrics::{self, Kind};
use super::{show, snap, xemem};
use crate::locate;
use crate::output::{self, Format, Reader};

/// Counters of an enclave, in this order.
const OF_ENCLAVES: [&str; 4] = ["exits", "user-exits", "interrupts", "forwarded"];
/// Counters of a segment, in this order.
const OF_SEGMENTS: [&str; 6] = [
    "published",
    "dropped",
    "discarded",
    "waited",
    "signals",
    "throttled",
];

/// Show what enclaves, arenas and segments have counted.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Enclave (default: all, and segments of Linux processes).
    name: Option<String>,
    /// Look again and again, and show what was added per second.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    every: Option<u32>,
    /// In what form; openmetrics is for monitoring systems.
    #[arg(long = "format", value_enum, default_value_t = Form::Table, conflicts_with = "every")]
    form: Form,
    /// How often to look with --every (default: until interrupted).
    #[arg(long, value_name = "N", requires = "every",
          value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Openmetrics,
}

/// Something that counts: its name, what it belongs to, and the counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counted {
    name: String,
    of: String,
    counts: Vec<u64>,
    gauges: [u64; 2],
    pool: Option<Pool>,
}

/// Of an arena: what it does without a free frame, and where copies go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pool {
    policy: &'static str,
    placement: &'static str,
    frames: u64,
    /// Ever used, if it was counted.
    high_water: Option<u64>,
}

/// Something that counts, with the labels that tell it from others.
type Labelled<'a> = (Vec<(&'a str, &'a str)>, &'a Counted);

/// One look: enclaves by name, segments by number.
#[derive(Debug, Default)]
struct Look {
    enclaves: BTreeMap<String, Counted>,
    segments: BTreeMap<u64, Counted>,
}

impl Stats {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let mut before = self.look()?;
        if self.form == Form::Openmetrics {
            return output::bytes(before.openmetrics().as_bytes());
        }
        let Some(seconds) = self.every else {
            return match format {
                Format::Json => output::json("stats", &before.json()),
                Format::Text => output::bytes(before.text("").as_bytes()),
            };
        };
        let pause = Duration::from_secs(seconds.into());
        let mut next = Instant::now();
        for _ in 0..self.count.unwrap_or(u32::MAX) {
            next += pause;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let now = self.look()?;
            let rates = now.since(&before, seconds.into());
            let reader = match format {
                Format::Json => output::json_line("stats_per_second", &rates.json())?,
                Format::Text => output::stream(rates.text("/s").as_bytes())?,
            };
            if reader == Reader::Gone {
                break;
            }
            before = now;
        }
        Ok(())
    }

    fn look(&self) -> Result<Look, Failure> {
        let run = locate::run_dir()?;
        let mut look = Look::default();
        for (name, inspection) in show::inspections(&run, self.name.as_deref())? {
            let counted = of_enclave(&name, &inspection);
            look.enclaves.insert(name, counted);
        }
        for segment in xemem::segments("look at what was counted")? {
            if self
                .name
                .as_ref()
                .is_none_or(|name| *name == segment.enclave)
            {
                look.segments.insert(segment.segid.0, of_segment(&segment));
            }
        }
        if let Some(name) = self.name.as_ref().filter(|_| look.enclaves.is_empty()) {
            // It exists, or looking for it would have failed.
            let why = "it does not answer: it is being made, dead, or stuck";
            return Err(
                Failure::new(Class::Failure, format!("look at enclave {name}"), why)
                    .with_hint("enclavectl list"),
            );
        }
        Ok(look)
    }
}

/// Counts by enclave: its own, and those of its segments added up.
pub(super) fn by_enclave() -> Result<BTreeMap<String, BTreeMap<&'static str, u64>>, Failure> {
    let all = Stats {
        name: None,
        every: None,
        form: Form::Table,
        count: None,
    };
    let look = all.look()?;
    let mut enclaves: BTreeMap<String, BTreeMap<&'static str, u64>> = BTreeMap::new();
    for counted in look.enclaves.values() {
        let counts = OF_ENCLAVES.into_iter().zip(counted.counts.iter().copied());
        enclaves.insert(counted.name.clone(), counts.collect());
    }
    for counted in look.segments.values() {
        if let Some(counts) = enclaves.get_mut(&counted.of) {
            for (name, count) in OF_SEGMENTS.into_iter().zip(&counted.counts) {
                *counts.entry(name).or_default() += count;
            }
        }
    }
    Ok(enclaves)
}

fn of_enclave(name: &str, inspection: &Inspection) -> Counted {
    let report = &inspection.report;
    let kvm = |name: &str| report.kvm.get(name).copied().unwrap_or(0);
    Counted {
        name: name.to_owned(),
        of: "enclave".to_owned(),
        counts: vec![
            kvm("exits"),
            report.exits.values().sum(),
            kvm("irq_injections"),
            report.forwarded.values().sum(),
        ],
        gauges: [inspection.uptime_ms / 1000, inspection.console_dropped],
        pool: None,
    }
}

fn of_segment(segment: &SegmentInfo) -> Counted {
    Counted {
        name: if segment.name.is_empty() {
            segment.segid.to_string()
        } else {
            segment.name.clone()
        },
        of: match (segment.kind, segment.enclave.as_str()) {
            (SegmentKind::Plain, "") => "plain".to_owned(),
            (_, enclave) => enclave.to_owned(),
        },
        counts: vec![
            segment.latest_generation,
            segment.dropped,
            segment.discarded,
            segment.waited,
            segment.signals,
            segment.throttled,
        ],
        gauges: [segment.readers.into(), segment.leases.into()],
        pool: (segment.kind == SegmentKind::Arena).then(|| Pool {
            policy: policy_name(segment.policy),
            placement: placement_name(segment.placement),
            frames: snap::pool_frames(segment),
            high_water: segment.high_water,
        }),
    }
}

impl Look {
    /// What was added since `before`, per second, rounded up: seldom is not
    /// never.
    fn since(&self, before: &Self, seconds: u64) -> Self {
        let rate = |now: &Counted, then: Option<&Counted>| Counted {
            counts: now
                .counts
                .iter()
                .enumerate()
                .map(|(nth, count)| {
                    let then = then.and_then(|then| then.counts.get(nth)).copied();
                    count.saturating_sub(then.unwrap_or(0)).div_ceil(seconds)
                })
                .collect(),
            ..now.clone()
        };
        Self {
            enclaves: self
                .enclaves
                .iter()
                .map(|(name, now)| (name.clone(), rate(now, before.enclaves.get(name))))
                .collect(),
            segments: self
                .segments
                .iter()
                .map(|(segid, now)| (*segid, rate(now, before.segments.get(segid))))
                .collect(),
        }
    }

    fn json(&self) -> Value {
        let object = |counted: &Counted, names: &[&str], gauges: [&str; 2]| {
            let mut object = Map::new();
            object.insert("name".to_owned(), json!(counted.name));
            object.insert("of".to_owned(), json!(counted.of));
            for (name, count) in names.iter().zip(&counted.counts) {
                object.insert(name.replace('-', "_"), json!(count));
            }
            for (name, gauge) in gauges.iter().zip(counted.gauges) {
                object.insert((*name).to_owned(), json!(gauge));
            }
            if let Some(pool) = &counted.pool {
                object.insert("policy".to_owned(), json!(pool.policy));
                object.insert("placement".to_owned(), json!(pool.placement));
                object.insert("pool_frames".to_owned(), json!(pool.frames));
                object.insert("high_water".to_owned(), json!(pool.high_water));
            }
            Value::Object(object)
        };
        let enclaves = self.enclaves.values();
        let segments = self.segments.values();
        json!({
            "enclaves": enclaves
                .map(|it| object(it, &OF_ENCLAVES, ["uptime_s", "console_dropped"]))
                .collect::<Vec<_>>(),
            "segments": segments
                .map(|it| object(it, &OF_SEGMENTS, ["readers", "leases"]))
                .collect::<Vec<_>>(),
        })
    }

    /// Everything for a monitoring system, counters in base units.
    fn openmetrics(&self) -> String {
        let enclaves: Vec<Labelled<'_>> = self
            .enclaves
            .values()
            .map(|it| (vec![("enclave", it.name.as_str())], it))
            .collect();
        let segids: Vec<String> = self.segments.keys().map(u64::to_string).collect();
        let segments: Vec<Labelled<'_>> = segids
            .iter()
            .zip(self.segments.values())
            .map(|(segid, it)| {
                let labels = [("segment", &it.name), ("segid", segid), ("of", &it.of)];
                let labels = labels.map(|(label, value)| (label, value.as_str()));
                (labels.to_vec(), it)
            })
            .collect();
        let counters = |prefix: &str, of: &[Labelled<'_>], names: &[&str]| -> Vec<String> {
            let of_name = |(nth, name): (usize, &&str)| {
                let name = format!("{prefix}_{}", name.replace('-', "_"));
                let samples = of
                    .iter()
                    .map(|(labels, it)| (labels.clone(), it.counts.get(nth).copied().unwrap_or(0)));
                openmetrics::family(&name, Kind::Counter, samples)
            };
            names.iter().enumerate().map(of_name).collect()
        };
        let gauges = |of: &[Labelled<'_>], names: [(&str, Kind); 2]| -> Vec<String> {
            let of_name = |(nth, (name, kind)): (usize, (&str, Kind))| {
                let samples = of
                    .iter()
                    .map(|(labels, it)| (labels.clone(), it.gauges[nth]));
                openmetrics::family(name, kind, samples)
            };
            names.into_iter().enumerate().map(of_name).collect()
        };
        let mut text = counters("enclave", &enclaves, &OF_ENCLAVES);
        text.extend(gauges(
            &enclaves,
            [
                ("enclave_uptime_seconds", Kind::Gauge),
                ("enclave_console_lost_bytes", Kind::Counter),
            ],
        ));
        text.extend(counters("xemem", &segments, &OF_SEGMENTS));
        text.extend(gauges(
            &segments,
            [
                ("xemem_readers", Kind::Gauge),
                ("xemem_leases", Kind::Gauge),
            ],
        ));
        text.push("# EOF\n".to_owned());
        text.concat()
    }

    fn text(&self, per: &str) -> String {
        let heading = |first: [&str; 2], counters: &[&str], gauges: [&str; 2]| -> Vec<String> {
            let counters = counters.iter().map(|name| format!("{name}{per}"));
            let first = first.iter().map(|&name| name.to_owned());
            let gauges = gauges.iter().map(|&name| name.to_owned());
            let all = first.chain(counters).chain(gauges);
            all.map(|name| name.to_uppercase()).collect()
        };
        let row = |counted: &Counted| -> Vec<String> {
            let first = [&counted.name, &counted.of];
            let first = first.map(|text| output::printable(text));
            let numbers = counted.counts.iter().chain(&counted.gauges);
            first
                .into_iter()
                .chain(numbers.map(u64::to_string))
                .collect()
        };
        let gauges = ["uptime-s", "console-lost"];
        let enclaves = heading(["name", "kind"], &OF_ENCLAVES, gauges);
        let mut segments = heading(["name", "of"], &OF_SEGMENTS, ["readers", "leases"]);
        segments.extend(["POLICY", "PLACEMENT", "POOL"].map(str::to_owned));
        let of_pool = |counted: &Counted| match &counted.pool {
            None => ["-"; 3].map(str::to_owned),
            Some(pool) => {
                let used = pool
                    .high_water
                    .map_or_else(|| "?".to_owned(), |n| n.to_string());
                let frames = format!("{used}/{}", pool.frames);
                [pool.policy.to_owned(), pool.placement.to_owned(), frames]
            }
        };
        let of_segment = |counted: &Counted| [row(counted), of_pool(counted).to_vec()].concat();
        let table = |heading: &[String], rows: Vec<Vec<String>>| {
            let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
            output::format_table(&heading, &rows)
        };
        format!(
            "{}\n{}",
            table(&enclaves, self.enclaves.values().map(row).collect()),
            table(&segments, self.segments.values().map(of_segment).collect())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(exits: u64, published: u64) -> Look {
        let counted = |name: &str, counts: &[u64]| Counted {
            name: name.to_owned(),
            of: "t".to_owned(),
            counts: counts.to_vec(),
            gauges: [7, 0],
            pool: (name != "t").then_some(Pool {
                policy: "block",
                placement: "first-free",
                frames: 768,
                high_water: Some(395),
            }),
        };
        Look {
            enclaves: [("t".to_owned(), counted("t", &[exits, 2, 3, 4]))].into(),
            segments: [(9, counted("flux\n", &[published, 0, 0, 0, 0, 0]))].into(),
        }
    }

    #[test]
    fn rates_are_what_was_added_and_seldom_is_not_never() {
        let rates = look(110, 6).since(&look(10, 5), 10);
        assert_eq!(rates.enclaves["t"].counts, [10, 0, 0, 0]);
        assert_eq!(rates.segments[&9].counts, [1, 0, 0, 0, 0, 0]);
        assert_eq!(rates.segments[&9].gauges, [7, 0]);
    }

    #[test]
    fn a_counter_that_begins_anew_is_no_overflow() {
        let rates = look(1, 1).since(&look(10, 5), 1);
        assert_eq!(rates.enclaves["t"].counts[0], 0);
        let fresh = look(5, 5).since(&Look::default(), 5);
        assert_eq!(fresh.enclaves["t"].counts[0], 1);
    }

    #[test]
    fn a_monitoring_system_gets_every_counter_with_its_labels() {
        let text = look(110, 6).openmetrics();
        assert!(
            text.contains("enclave_exits_total{enclave=\"t\"} 110\n"),
            "{text}"
        );
        assert!(
            text.contains("# TYPE enclave_uptime_seconds gauge\n"),
            "{text}"
        );
        let of = "{segment=\"flux\\n\",segid=\"9\",of=\"t\"}";
        assert!(
            text.contains(&format!("xemem_published_total{of} 6\n")),
            "{text}"
        );
        assert!(text.contains(&format!("xemem_readers{of} 7\n")), "{text}");
        assert!(text.ends_with("# EOF\n"));
        let families = text
            .lines()
            .filter(|line| line.starts_with("# TYPE"))
            .count();
        assert_eq!(families, OF_ENCLAVES.len() + OF_SEGMENTS.len() + 4);
    }

    #[test]
    fn both_forms_name_what_they_show() {
        let text = look(110, 6).text("/s");
        assert!(
            text.starts_with("NAME  KIND  EXITS/S  USER-EXITS/S"),
            "{text}"
        );
        assert!(text.contains("flux?"), "{text}");
        assert!(text.contains("block   first-free  395/768"), "{text}");
        let value = look(110, 6).json();
        assert_eq!(value["enclaves"][0]["user_exits"], 2);
        assert_eq!(value["segments"][0]["published"], 6);
        assert_eq!(value["segments"][0]["readers"], 7);
        assert_eq!(value["segments"][0]["high_water"], 395);
        assert_eq!(value["enclaves"][0].get("policy"), None);
    }
}
