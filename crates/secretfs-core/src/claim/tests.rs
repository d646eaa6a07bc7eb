use super::lvm::{PhysicalVolume, Plan, Segment, decide, parse_report};
use super::*;
use crate::config::{Backing, Config, Layout, Lifecycle, Source};
use crate::machine::Contents;
use crate::name::VolumeName;

fn disk(name: &str, model: &str, serial: &str) -> DiskFacts {
    DiskFacts {
        name: name.to_owned(),
        model: model.to_owned(),
        serial: serial.to_owned(),
        wwns: vec![format!("eui.{serial}")],
        by_id: vec![format!("nvme-{}_{serial}", model.replace(' ', "_"))],
        namespace: Some(1),
        bytes: 100 << 30,
        settled: true,
    }
}

fn wanted(backing: &str) -> (DeviceMatch, Layout) {
    let text = format!(
        "[volume.v]\nmount = \"/mnt/v\"\nbacking = {backing}\n\
         key = {{ source = \"s3+kms\", bucket = \"b\", object = \"o\", kms-key = \"k\" }}\n"
    );
    let config = Config::parse(&[Source { path: "test.toml".to_owned(), text }]);
    match config.volumes.into_values().next().map(|volume| volume.backing) {
        Some(Backing::Match { device_match, layout }) => (device_match, layout),
        other => panic!("{backing} gives {other:?} and {:?}", config.refused),
    }
}

fn machine() -> Vec<DiskFacts> {
    const STORE: &str = "Amazon EC2 NVMe Instance Storage";
    vec![
        disk("nvme0n1", EBS_MODEL, "vol0123456789abcdef0"),
        disk("nvme1n1", STORE, "AWSB"),
        disk("nvme2n1", EBS_MODEL, "vol0123456789abcdef1"),
        disk("nvme3n1", STORE, "AWSA"),
        DiskFacts { bytes: 1 << 40, ..disk("sda", "QEMU HARDDISK", "Q1") },
    ]
}

fn chosen(backing: &str, disks: &[DiskFacts], known: &[&str]) -> Result<Vec<String>, Failure> {
    let known: Vec<String> = known.iter().map(|&identity| identity.to_owned()).collect();
    let members = choose(&wanted(backing).0, disks, &known)?;
    Ok(members.into_iter().map(|member| member.path).collect())
}

#[test]
fn disks_are_chosen_by_what_they_are() {
    let cases = [
        (r#"{ match = { serial = "AWSA" } }"#, vec!["/dev/nvme3n1"]),
        (r#"{ match = { ebs-volume = "vol-0123456789abcdef1" } }"#, vec!["/dev/nvme2n1"]),
        (r#"{ match = { wwn = "eui.Q1" } }"#, vec!["/dev/sda"]),
        (r#"{ match = { by-id = "nvme-QEMU*" } }"#, vec!["/dev/sda"]),
        (r#"{ match = { by-id = "/dev/disk/by-id/nvme-QEMU_HARDDISK_Q1" } }"#, vec!["/dev/sda"]),
        (r#"{ match = { model = "*A*", min-size = "1TiB" } }"#, vec!["/dev/sda"]),
        // In the order of serial numbers, not of names.
        (r#"{ match = { model = "*Instance Storage" }, layout = "striped" }"#, vec!["/dev/nvme3n1", "/dev/nvme1n1"]),
        (r#"{ match = { serial = ["AWSB", "AWSA"] }, layout = "linear" }"#, vec!["/dev/nvme3n1", "/dev/nvme1n1"]),
    ];
    for (backing, paths) in cases {
        assert_eq!(chosen(backing, &machine(), &[]), Ok(paths.into_iter().map(str::to_owned).collect()), "{backing}");
    }
}

#[test]
fn a_guess_is_never_made() {
    let twins = || [machine(), vec![disk("nvme9n1", "QEMU HARDDISK", "Q1")]].concat();
    let nameless =
        vec![DiskFacts { name: "vda".to_owned(), model: "M".to_owned(), settled: true, ..DiskFacts::default() }];
    let early = vec![DiskFacts { settled: false, ..disk("sda", "M", "S") }];
    let cases = [
        (
            r#"{ match = { serial = "X" } }"#,
            machine(),
            Cause::BackingMissing,
            "0 of 1 disks with serial \"X\": none; missing: serial \"X\"",
        ),
        (
            r#"{ match = { model = "*Instance Storage" } }"#,
            machine(),
            Cause::BackingAmbiguous,
            "2 disks have model \"*Instance Storage\", 1 wanted: /dev/nvme3n1 (Amazon EC2 NVMe Instance Storage AWSA), /dev/nvme1n1 (Amazon EC2 NVMe Instance Storage AWSB)",
        ),
        (
            r#"{ match = { ebs-volume = ["vol-0123456789abcdef1", "vol-0123456789abcdef2"] }, layout = "linear" }"#,
            machine(),
            Cause::BackingMissing,
            "1 of 2 disks with ebs-volume \"vol-0123456789abcdef1\" or \"vol-0123456789abcdef2\": /dev/nvme2n1 (Amazon Elastic Block Store vol0123456789abcdef1); missing: ebs-volume \"vol-0123456789abcdef2\"",
        ),
        (
            r#"{ match = { serial = "Q1" } }"#,
            twins(),
            Cause::BackingAmbiguous,
            "/dev/nvme9n1 and /dev/sda both say that they are QEMU HARDDISK Q1",
        ),
        (
            r#"{ match = { model = "M" } }"#,
            nameless,
            Cause::BackingAmbiguous,
            "/dev/vda has no serial number and no world wide name to be known by again",
        ),
        (
            r#"{ match = { serial = "S" } }"#,
            early,
            Cause::BackingMissing,
            "0 of 1 disks with serial \"S\": none; missing: serial \"S\"; udev is not done with /dev/sda",
        ),
    ];
    for (backing, disks, cause, detail) in cases {
        assert_eq!(chosen(backing, &disks, &[]), Err(Failure::new(cause, detail)), "{backing}");
    }
}

#[test]
fn what_was_claimed_is_known_again() {
    let one = r#"{ match = { model = "Amazon EC2*" } }"#;
    let known = "Amazon EC2 NVMe Instance Storage AWSB";
    assert_eq!(chosen(one, &machine(), &[known]), Ok(vec!["/dev/nvme1n1".to_owned()]));
    assert!(chosen(one, &machine(), &["gone"]).is_err());
    let early: Vec<DiskFacts> = machine().into_iter().map(|disk| DiskFacts { settled: false, ..disk }).collect();
    assert_eq!(chosen(one, &early, &[known]), Ok(vec!["/dev/nvme1n1".to_owned()]));
    let all = r#"{ match = { model = "Amazon EC2*", count = 2 }, layout = "striped" }"#;
    let mut fewer = machine();
    fewer.remove(1);
    let failure = chosen(all, &fewer, &["Amazon EC2 NVMe Instance Storage AWSA", known]).unwrap_err();
    assert_eq!(failure.cause, Cause::BackingMissing);
    assert!(failure.detail.ends_with("; missing: Amazon EC2 NVMe Instance Storage AWSB"), "{failure}");
}

#[test]
fn namespaces_of_one_controller_are_told_apart() {
    let disk = DiskFacts { namespace: Some(2), ..disk("nvme1n2", "M", "S") };
    assert_eq!(disk.identity().as_deref(), Some("M S namespace 2"));
}

#[test]
fn standings() {
    use Lifecycle::{Ephemeral, Persistent};
    let record = |lifecycle| Record {
        machine_id: "m".to_owned(),
        instance_id: Some("i-1".to_owned()),
        boot_id: "b".to_owned(),
        lifecycle,
        luks_uuid: "u".to_owned(),
        members: vec!["A".to_owned(), "B".to_owned()],
    };
    let (same, other) = (["A", "B"].map(str::to_owned), ["A", "C"].map(str::to_owned));
    let ours = Contents::Luks { ours: true, unfinished: false };
    let unfinished = Contents::Luks { ours: true, unfinished: true };
    let [b, c] = ["B", "C"].map(|name| vec![name.to_owned()]);
    let changed = Standing::MembersChanged { missing: b, new: c.clone() };
    let gone = Standing::HeaderGone { luks_uuid: "u".to_owned() };
    let header = Standing::OtherHeader { was: "u".to_owned(), now: "v".to_owned() };
    let foreign = Contents::Signature("ext4".to_owned());
    for (was, now, members, contents, uuid, standing, refused) in [
        (Persistent, Persistent, &same, &ours, Some("u"), Standing::SameDevices, None),
        (Persistent, Persistent, &other, &ours, Some("u"), changed.clone(), None),
        (Persistent, Persistent, &same, &ours, Some("v"), header, Some(Cause::ClaimChanged)),
        (Persistent, Persistent, &same, &Contents::Blank, None, gone.clone(), Some(Cause::HeaderGone)),
        (Persistent, Persistent, &other, &Contents::Blank, None, gone.clone(), Some(Cause::HeaderGone)),
        (Persistent, Persistent, &same, &Contents::Begun, None, gone, Some(Cause::HeaderGone)),
        (Persistent, Persistent, &same, &unfinished, Some("u"), Standing::HeaderUnfinished, Some(Cause::ClaimChanged)),
        // Whether that may be formatted is decided elsewhere, and it may not.
        (Persistent, Persistent, &same, &foreign, None, Standing::SameDevices, None),
        (Persistent, Ephemeral, &same, &ours, Some("u"), Standing::WasKept, Some(Cause::ClaimChanged)),
        (Ephemeral, Persistent, &same, &ours, Some("v"), Standing::FirstTime, None),
        (Ephemeral, Ephemeral, &same, &ours, Some("v"), Standing::SameDevices, None),
        (Persistent, Ephemeral, &same, &Contents::Begun, None, Standing::WasKept, Some(Cause::ClaimChanged)),
        (Ephemeral, Ephemeral, &same, &Contents::Begun, None, Standing::SameDevices, None),
        (Ephemeral, Ephemeral, &other, &ours, Some("v"), changed, None),
        (Ephemeral, Ephemeral, &other, &Contents::Blank, None, Standing::NewBlankStore { new: c }, None),
        (Ephemeral, Ephemeral, &same, &Contents::Blank, None, Standing::NewBlankStore { new: Vec::new() }, None),
    ] {
        let on = |machine_id: &str, instance_id: Option<&str>, record: Option<&Record>| {
            let host = Host { machine_id: machine_id.to_owned(), instance_id: instance_id.map(str::to_owned) };
            compare(record, Present { host: &host, lifecycle: now, members, contents, luks_uuid: uuid })
        };
        let record = record(was);
        let found = on("m", Some("i-1"), Some(&record));
        assert_eq!(found, standing);
        assert_eq!(found.refusal().map(|failure| failure.cause), refused, "{found:?}");
        assert_eq!(on("m", None, Some(&record)), found);
        // Images of this machine's root disk.
        assert_eq!(on("another machine", Some("i-1"), Some(&record)), Standing::FirstTime);
        assert_eq!(on("m", Some("i-2"), Some(&record)), Standing::FirstTime);
        assert_eq!(on("m", Some("i-1"), None), Standing::FirstTime);
    }
}

#[test]
fn reports_of_lvm_are_read() {
    let text = r#"{ "report": [ { "pv": [
        {"pv_name":"/dev/nvme0n1", "pv_uuid":"p1", "vg_name":"secretfs-v", "vg_uuid":"g", "vg_tags":"a,secretfs", "pv_missing":""}
    ] } ] , "log": [] }"#;
    let rows = parse_report::<PhysicalVolume>(text, "pv").unwrap();
    assert_eq!(rows, [physical("/dev/nvme0n1", "p1", "secretfs-v")]);
    assert_eq!(parse_report::<PhysicalVolume>("", "pv").unwrap_err().cause, Cause::LvmFailed);
    assert_eq!(parse_report::<PhysicalVolume>(text, "lv").unwrap_err().cause, Cause::LvmFailed);
}

fn physical(path: &str, uuid: &str, group: &str) -> PhysicalVolume {
    PhysicalVolume {
        pv_name: path.to_owned(),
        pv_uuid: uuid.to_owned(),
        vg_name: group.to_owned(),
        vg_uuid: if group.is_empty() { "" } else { "g" }.to_owned(),
        vg_tags: if group.is_empty() { "" } else { "a,secretfs" }.to_owned(),
        pv_missing: String::new(),
    }
}

#[test]
fn what_lvm_is_asked_to_do() {
    let name = VolumeName::new("v").unwrap();
    assert_eq!((lvm::group(&name).as_str(), lvm::mapper(&name).as_str()), ("secretfs-v", "secretfs--v-data"));
    let member = |letter: char| Member { identity: format!("M {letter}"), path: format!("/dev/{letter}") };
    let (a, b) = (member('a'), member('b'));
    let members = [a.clone(), b.clone()];
    let striped = Layout::Striped { stripe_size: 65536 };
    let segment = |kind: &str, stripes: &str, size: &str| Segment {
        lv_name: "data".to_owned(),
        segtype: kind.to_owned(),
        stripes: stripes.to_owned(),
        stripe_size: size.to_owned(),
    };
    let ours = [physical("/dev/a", "p1", "secretfs-v"), physical("/dev/b", "p2", "secretfs-v")];
    let data = [segment("striped", "2", "65536")];
    let run = |layout, begun: &[&str], physical: &[PhysicalVolume], segments: &[Segment]| {
        let begun: Vec<String> = begun.iter().map(|&identity| identity.to_owned()).collect();
        decide(&name, layout, &members, &begun, physical, segments).map_err(|failure| failure.cause)
    };
    let fresh = Plan::Create { blank: members.to_vec(), begun: Vec::new() };
    assert_eq!(run(striped, &[], &[], &[]), Ok(fresh));
    assert_eq!(run(striped, &[], &ours, &data), Ok(Plan::Activate));
    assert_eq!(run(striped, &[], &ours, &[]), Ok(Plan::CreateData));
    assert_eq!(run(Layout::Linear, &[], &ours, &[segment("linear", "1", "0")]), Ok(Plan::Activate));
    assert_eq!(run(Layout::Linear, &[], &ours, &data), Err(Cause::BackingMismatch));
    assert_eq!(run(striped, &[], &ours, &[segment("striped", "2", "4096")]), Err(Cause::BackingMismatch));

    let orphan = [physical("/dev/a", "p1", "")];
    assert_eq!(run(striped, &[], &orphan, &[]), Err(Cause::ForeignSignature));
    assert_eq!(run(striped, &["M a"], &orphan, &[]), Ok(Plan::Create { blank: vec![b], begun: vec![a] }));
    let foreign = [physical("/dev/a", "p1", "root")];
    assert_eq!(run(striped, &["M a"], &foreign, &[]), Err(Cause::ForeignSignature));
    let untagged = [PhysicalVolume { vg_tags: "secretfs2".to_owned(), ..ours[0].clone() }, ours[1].clone()];
    assert_eq!(run(striped, &[], &untagged, &data), Err(Cause::ForeignSignature));
    let two = [PhysicalVolume { vg_uuid: "h".to_owned(), ..ours[0].clone() }, ours[1].clone()];
    assert_eq!(run(striped, &[], &two, &data), Err(Cause::BackingMismatch));
    let missing =
        PhysicalVolume { pv_name: "[unknown]".to_owned(), pv_missing: "missing".to_owned(), ..ours[1].clone() };
    assert_eq!(run(striped, &[], &[ours[0].clone(), missing], &data), Err(Cause::BackingMissing));
    assert_eq!(run(striped, &[], &ours[..1], &data), Err(Cause::BackingMismatch));
}
