//! `snap pool`: where an arena's copies go, and how much memory they took.

use std::time::Duration;

use clap::Args;
use enclave_vmm::failure::Failure;
use serde_json::json;
use xemem_host::{Policy, Stream};

use super::broker;
use crate::output::{self, Format};

/// Show where an arena's copies go and how many frames they took.
#[derive(Debug, Args)]
pub(crate) struct PoolOf {
    /// Arena.
    name: String,
}

impl PoolOf {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let what = format!("look at the pool of {}", self.name);
        let failed = |error| broker::failure(&what, &error);
        let socket = broker::socket()?;
        let stream = Stream::attach(&socket, &self.name, Policy::Latest, Duration::ZERO);
        let pool = stream.and_then(|stream| stream.pool()).map_err(failed)?;
        if format == Format::Json {
            let value = json!({
                "placement": pool.placement_name(),
                "frames": pool.frames,
                "high_water": pool.high_water,
                "frame_bytes": pool.frame_bytes,
            });
            return output::json("pool", &value);
        }
        let row = vec![
            pool.placement_name().to_owned(),
            output::size(pool.frame_bytes),
            pool.frames.to_string(),
            pool.high_water.to_string(),
        ];
        output::table(&["PLACEMENT", "FRAME", "FRAMES", "HIGH WATER"], &[row])
    }
}
