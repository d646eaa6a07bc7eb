//! The report for a reader.

use std::fmt::Write as _;

use secretfs_core::progress::{size, span};

use super::{Report, Usage};

/// One paragraph for each volume at `now`, in seconds since the epoch, its labels aligned as `systemctl status` aligns them.
pub fn render(reports: &[Report], now: u64, colour: bool) -> String {
    let paragraphs: Vec<String> = reports.iter().map(|report| paragraph(report, now, colour)).collect();
    paragraphs.join("\n")
}

fn paragraph(report: &Report, now: u64, colour: bool) -> String {
    let mut text = format!("{} {} - {}", dot(report.state, colour), report.name, report.state);
    if let Some(since) = report.since.filter(|_| matches!(report.state, "ready" | "failed")) {
        let _ = write!(text, " for {}", span(now.saturating_sub(since)));
    }
    text.push('\n');
    for (label, value) in lines(report) {
        let _ = writeln!(text, "{label:>12}: {value}");
    }
    text
}

fn lines(report: &Report) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let mut add = |label, value: Option<String>| lines.extend(value.map(|value| (label, value)));
    add("Status", report.status.clone());
    for error in &report.errors {
        add("Error", Some(error.clone()));
    }
    add(
        "Mount",
        report.mount.as_ref().map(|mount| match (&report.filesystem, report.mounted) {
            (Some(filesystem), true) => format!("{mount} ({filesystem})"),
            _ => format!("{mount} (not mounted)"),
        }),
    );
    add("Swap", report.swap.map(|in_use| if in_use { "in use" } else { "not in use" }.to_owned()));
    add(
        "Mapper",
        report.cipher.as_ref().map(|_| match &report.luks_uuid {
            Some(uuid) => format!("{} (LUKS {uuid})", report.mapper),
            None => report.mapper.clone(),
        }),
    );
    add(
        "Cipher",
        report.cipher.as_ref().map(|cipher| {
            let bits = report.key_bits.unwrap_or_default();
            format!("{cipher}, {bits}-bit key, {}-byte sectors", report.sector_size.unwrap_or_default())
        }),
    );
    add(
        "Backing",
        report.backing.as_ref().map(|backing| match &report.backing_device {
            Some(device) if device != backing => format!("{backing} on {device}"),
            _ => backing.clone(),
        }),
    );
    add("Lifecycle", report.lifecycle.map(str::to_owned));
    add("Key", report.key_source.clone());
    add("Usage", report.usage.map(usage));
    add("Zeroing", report.zeroing.map(|progress| progress.to_string()));
    add(
        "Unit",
        Some(match report.main_pid {
            Some(pid) => format!("{} (PID {pid})", report.unit),
            None => report.unit.clone(),
        }),
    );
    lines
}

fn dot(state: &str, colour: bool) -> String {
    let (dot, code) = match state {
        "ready" => ("●", "32"),
        "failed" | "refused" => ("×", "31"),
        "starting" | "stopping" => ("●", "33"),
        _ => ("○", "0"),
    };
    if colour { format!("\x1b[{code}m{dot}\x1b[0m") } else { dot.to_owned() }
}

fn usage(usage: Usage) -> String {
    let all = usage.used + usage.available;
    let percent = if all == 0 { 0 } else { (usage.used * 100).div_ceil(all) };
    format!("{} of {} ({percent} %)", size(usage.used), size(usage.size))
}

#[cfg(test)]
mod tests {
    use secretfs_core::progress::Progress;

    use super::*;

    fn ready() -> Report {
        Report {
            name: "scratch".to_owned(),
            state: "ready",
            status: Some("Mounted and verified; holding the volume".to_owned()),
            since: Some(1000),
            unit: "secretfs@scratch.service".to_owned(),
            main_pid: Some(42),
            mount: Some("/mnt/secretfs".to_owned()),
            mounted: true,
            swap: None,
            filesystem: Some("ext4".to_owned()),
            mapper: "/dev/mapper/secretfs-scratch".to_owned(),
            cipher: Some("aes-xts-plain64".to_owned()),
            key_bits: Some(512),
            sector_size: Some(4096),
            luks_uuid: Some("01234567-89ab-cdef-0123-456789abcdef".to_owned()),
            lifecycle: Some("ephemeral"),
            backing: Some("/var/lib/secretfs/scratch.img".to_owned()),
            backing_device: Some("/dev/loop0".to_owned()),
            key_source: Some("s3://bucket/object under alias/key".to_owned()),
            usage: Some(Usage { size: 2 << 30, used: 3 << 20, available: 1 << 30 }),
            zeroing: Some(Progress { done: 1 << 29, total: 1 << 30, rate: 1 << 26 }),
            errors: Vec::new(),
        }
    }

    #[test]
    fn a_ready_volume() {
        let wanted = "\
● scratch - ready for 60 s
      Status: Mounted and verified; holding the volume
       Mount: /mnt/secretfs (ext4)
      Mapper: /dev/mapper/secretfs-scratch (LUKS 01234567-89ab-cdef-0123-456789abcdef)
      Cipher: aes-xts-plain64, 512-bit key, 4096-byte sectors
     Backing: /var/lib/secretfs/scratch.img on /dev/loop0
   Lifecycle: ephemeral
         Key: s3://bucket/object under alias/key
       Usage: 3.0 MiB of 2.0 GiB (1 %)
     Zeroing: 50 % of 1.0 GiB, 64.0 MiB/s, 8 s left
        Unit: secretfs@scratch.service (PID 42)
";
        assert_eq!(render(&[ready()], 1060, false), wanted);
    }

    #[test]
    fn swap_space_has_no_mount() {
        let usage = Some(Usage { size: 2 << 30, used: 0, available: 2 << 30 });
        let swap = |in_use| Report { mount: None, mounted: false, swap: Some(in_use), usage, ..ready() };
        for (in_use, line) in [(true, "        Swap: in use\n"), (false, "        Swap: not in use\n")] {
            let text = render(&[swap(in_use)], 1060, false);
            assert!(text.contains(line) && !text.contains("Mount:"), "{text}");
            assert!(text.contains("       Usage: 0 B of 2.0 GiB (0 %)\n"), "{text}");
        }
    }

    #[test]
    fn a_stopped_volume_shows_no_mapping() {
        let report = Report {
            state: "stopped",
            status: None,
            mounted: false,
            filesystem: None,
            cipher: None,
            key_bits: None,
            sector_size: None,
            luks_uuid: None,
            backing_device: None,
            usage: None,
            zeroing: None,
            main_pid: None,
            ..ready()
        };
        let wanted = "\
○ scratch - stopped
       Mount: /mnt/secretfs (not mounted)
     Backing: /var/lib/secretfs/scratch.img
   Lifecycle: ephemeral
         Key: s3://bucket/object under alias/key
        Unit: secretfs@scratch.service
";
        assert_eq!(render(&[report], 1060, false), wanted);
    }
}
