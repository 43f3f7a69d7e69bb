//! What a client gets: round trips, HTTP requests, bytes both ways; alone and replicated.

use crate::Settings;
use crate::measure::Measures;
use anyhow::Result;
use rig::lab::Lab;
use rig::netns::Namespace;
use rig::observation::{Load, Observation};
use rig::oracle::Oracle;
use rig::pair::{Alone, Pair, PairOptions};
use rig::scene::PROTECTED_LIMIT;
use rig::traffic::{self, Kind};
use rig::wait::pause;
use std::time::Duration;

/// One request at a time: the round trip is then the service's, not a queue's.
fn one_by_one() -> Load {
    Load {
        window: 1,
        interval_us: 0,
        ..Load::default()
    }
}

pub(crate) fn measure(lab: &mut Lab, settings: &Settings, measures: &mut Measures) -> Result<()> {
    lab.reset()?;
    Alone::start(
        lab,
        &PairOptions {
            log: false,
            ..lab.options()
        },
    )?;
    let alone = visit("alone", settings, measures)?;
    lab.reset()?;
    let options = lab.options();
    Pair::start_protected(lab, &options, PROTECTED_LIMIT)?;
    let replicated = visit("replicated", settings, measures)?;
    let ratio = replicated.round_trip_p50_us as f64 / alone.round_trip_p50_us.max(1) as f64;
    measures.add("echo_rtt_ratio", ratio, "ratio");
    Ok(())
}

fn visit(how: &str, settings: &Settings, measures: &mut Measures) -> Result<Observation> {
    let mut client = Oracle::start(&Namespace::named("client"), &one_by_one())?;
    client.wait_connected()?;
    pause(Duration::from_secs(settings.seconds));
    let seen = client.finish()?;
    anyhow::ensure!(seen.complaints().is_empty(), "{:?}", seen.complaints());
    measures.add(
        format!("echo_p50_us_{how}"),
        seen.round_trip_p50_us as f64,
        "us",
    );
    measures.add(
        format!("echo_p99_us_{how}"),
        seen.round_trip_p99_us as f64,
        "us",
    );
    let http = traffic::make(Kind::Http, settings.seconds)?;
    measures.add(format!("http_requests_s_{how}"), http.per_second(), "1/s");
    let receive = traffic::make(Kind::Receive, settings.seconds)?;
    measures.add(format!("receive_mbit_s_{how}"), receive.mbit_s(), "Mbit/s");
    let transmit = traffic::make(Kind::Transmit, settings.seconds)?;
    measures.add(
        format!("transmit_mbit_s_{how}"),
        transmit.mbit_s(),
        "Mbit/s",
    );
    Ok(seen)
}
