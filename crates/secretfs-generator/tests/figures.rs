//! How long a boot waits for the generator's decisions; run by `cargo xtask bench`.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use secretfs_core::config::{Config, Source};
use secretfs_core::units;

/// Runs of which the median is taken.
const RUNS: usize = 101;

#[test]
#[ignore = "prints figures"]
fn figures() {
    let (one, hundred) = (median(1), median(100));
    println!("configuration to units: 1 volume {one:?}, 100 volumes {hundred:?}");
    println!("100 volumes take {:.0} times as long as one", hundred.as_secs_f64() / one.as_secs_f64());
}

fn median(volumes: usize) -> Duration {
    let mut text = String::new();
    for index in 0..volumes {
        write!(
            text,
            "[volume.v{index}]\nmount = \"/mnt/v{index}\"\nbacking = {{ file = \"/srv/v{index}.img\", size = \"1GiB\" }}\n\
             key = {{ source = \"s3+kms\", bucket = \"b\", object = \"o\", kms-key = \"k\" }}\n"
        )
        .unwrap();
    }
    let source = [Source { path: "bench.toml".to_owned(), text }];
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let begun = Instant::now();
            let plan = units::plan(&Config::parse(&source));
            let length: usize = plan.files.iter().map(|file| file.render().len()).sum();
            let time = begun.elapsed();
            assert!(length > 1000 * volumes, "the plan is not there");
            time
        })
        .collect();
    times.sort();
    times[RUNS / 2]
}
