use super::*;

const GOOD: &str = r#"
[aws]
region = "eu-central-1"

[volume.scratch]
mount = "/mnt/secretfs"
lifecycle = "ephemeral"
backing = { file = "/var/lib/secretfs/scratch.img", size = "2GiB" }
filesystem = { type = "xfs", label = "scratch", mkfs-options = ["-m", "reflink=0"], mount-options = ["noatime", "discard"], owner = "postgres", group = "26", mode = "0750" }
luks = { discard = true, no-write-workqueue = true, sector-size = 512 }
wipe = "zero"
wipe-before-ready = true
key = { source = "s3+kms", bucket = "b", object = "o", kms-key = "alias/k", context = { volume = "{volume}" } }
consumers = ["postgresql.service"]
start-timeout = "5min"
"#;

fn parse(texts: &[&str]) -> Config {
    let sources: Vec<Source> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| Source { path: format!("{index}.toml"), text: (*text).to_owned() })
        .collect();
    Config::parse(&sources)
}

fn parse_as(path: &str, text: &str) -> Config {
    Config::parse(&[Source { path: path.to_owned(), text: text.to_owned() }])
}

fn volume(name: &str, mount: &str, backing: &str) -> String {
    format!(
        "[volume.{name}]\nmount = \"{mount}\"\nbacking = {backing}\nkey = {{ source = \"s3+kms\", bucket = \"b\", object = \"o\", kms-key = \"k\" }}\n"
    )
}

fn file(path: &str) -> String {
    format!("{{ file = \"{path}\", size = \"64MiB\" }}")
}

fn refused(config: &Config) -> Vec<&str> {
    config.refused.keys().map(VolumeName::as_str).collect()
}

#[test]
fn a_whole_volume() {
    let config = parse(&[GOOD]);
    let name = VolumeName::new("scratch").unwrap();
    let wanted = Volume {
        name: name.clone(),
        source_path: "0.toml".to_owned(),
        line: 5,
        target: Target::Mount(MountPoint::new("/mnt/secretfs").unwrap()),
        lifecycle: Lifecycle::Ephemeral,
        backing: Backing::File { path: "/var/lib/secretfs/scratch.img".to_owned(), size: 2 << 30 },
        filesystem: Filesystem {
            kind: FilesystemType::Xfs,
            label: Some("scratch".to_owned()),
            mkfs_options: ["-m", "reflink=0"].map(str::to_owned).to_vec(),
            mount_options: ["noatime", "discard"].map(str::to_owned).to_vec(),
            root: RootDirectory { owner: Some("postgres".to_owned()), group: Some("26".to_owned()), mode: Some(0o750) },
        },
        luks: Luks {
            discard: true,
            no_read_workqueue: false,
            no_write_workqueue: true,
            sector_size: Some(512),
            integrity: None,
        },
        wipe: Wipe::Zero { before_ready: true },
        key: KeySource::S3Kms {
            bucket: "b".to_owned(),
            object: "o".to_owned(),
            kms_key: "alias/k".to_owned(),
            context: BTreeMap::from([("volume".to_owned(), "{volume}".to_owned())]),
        },
        consumers: vec![UnitName::new("postgresql.service").unwrap()],
        auto: true,
        start_timeout: Duration::from_mins(5),
    };
    assert_eq!(
        config,
        Config {
            aws: Aws { region: Some("eu-central-1".to_owned()) },
            volumes: BTreeMap::from([(name, wanted)]),
            ..Config::default()
        }
    );
}

#[test]
fn one_bad_volume_leaves_the_others() {
    let bad =
        "[volume.bad]\nmount = \"/mnt/bad\"\nlifecycel = \"ephemeral\"\nconsumers = [\"a.service\"]\nauto = false\n";
    let config = parse(&[&format!("{GOOD}{bad}")]);
    assert_eq!(config.volumes.len(), 1);
    let refused = &config.refused[&VolumeName::new("bad").unwrap()];
    assert_eq!(refused.target, Some(Target::Mount(MountPoint::new("/mnt/bad").unwrap())));
    assert_eq!(refused.consumers, vec![UnitName::new("a.service").unwrap()]);
    assert!(!refused.auto);
    assert_eq!(refused.errors[0].to_string(), "0.toml:18:1: volume.bad.lifecycel: there is no such key");
    assert_eq!(refused.errors[0].hint.as_deref(), Some("did you mean `lifecycle`?"));
}

#[test]
fn a_syntax_error_refuses_the_whole_file_and_no_other() {
    let broken = volume("broken", "/mnt/b", &file("/b")) + "this is not = = toml\n";
    let config = parse(&[GOOD, &broken]);
    assert_eq!(config.volumes.len(), 1);
    assert_eq!(refused(&config), ["broken", "refused-1.toml"]);
    let errors = config.all_errors();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].to_string().starts_with("1.toml:5:"), "{}", errors[0]);
}

#[test]
fn consumers_behind_a_syntax_error_are_kept_from_running() {
    let broken = "# old.service\n[volume.a\nmount = \"/mnt/a\nconsumers = [\"postgresql.service\", 'b@c.timer', \"basic.target\"]\n";
    let config = parse(&[broken]);
    let stand_in = &config.refused[&VolumeName::new("refused-0.toml").unwrap()];
    assert_eq!(stand_in.consumers, ["b@c.timer", "postgresql.service"].map(|unit| UnitName::new(unit).unwrap()));
    assert!(stand_in.auto);
}

#[test]
fn consumers_in_a_file_that_is_no_text_are_kept_from_running() {
    let read = |bytes: Vec<u8>| {
        Config::read(
            |_| Ok(Vec::new()),
            |path| {
                assert_eq!(path, CONFIG_FILE);
                Ok(bytes.clone())
            },
        )
    };
    let good = GOOD.as_bytes();
    assert_eq!(read(good.to_vec()), parse_as(CONFIG_FILE, GOOD));
    for bytes in [[good, b"# \xff"].concat(), [good, &vec![b'#'; FILE_MAX]].concat()] {
        let config = read(bytes);
        assert_eq!(refused(&config), ["refused-secretfs.toml"]);
        let stand_in = config.refused.values().next().unwrap();
        assert_eq!(stand_in.consumers, [UnitName::new("postgresql.service").unwrap()]);
        assert!(stand_in.errors[0].message.starts_with("cannot be read"), "{:?}", stand_in.errors);
    }
}

#[test]
fn a_volume_under_a_wrong_key_is_refused_and_not_forgotten() {
    let table = "mount = \"/mnt/a\"\nconsumers = [\"a.service\"]\n";
    for (header, name) in [
        ("[volumes.a]", "a"),
        ("[a]", "a"),
        ("[[volume]]", "volume-1"),
        ("[[volume.a]]", "a"),
        ("[\"volume.a\"]", "volume.a"),
    ] {
        let config = parse(&[&format!("{header}\n{table}")]);
        assert_eq!(refused(&config), [name], "{header}");
        let stand_in = config.refused.values().next().unwrap();
        assert_eq!(stand_in.target, Some(Target::Mount(MountPoint::new("/mnt/a").unwrap())), "{header}");
        assert_eq!(stand_in.consumers, [UnitName::new("a.service").unwrap()], "{header}");
    }
    assert!(parse(&["[unknown]\nregion = \"a\"\n"]).refused.is_empty());
}

#[test]
fn a_volume_that_cannot_be_named_has_a_stand_in() {
    let text = volume("\"my volume\"", "/mnt/a", &file("/srv/1")) + "consumers = [\"a.service\"]\n";
    let config = parse(&[&text]);
    let stand_in = &config.refused[&VolumeName::new("refused-my_volume").unwrap()];
    assert_eq!(stand_in.consumers, vec![UnitName::new("a.service").unwrap()]);
    assert_eq!(stand_in.target, Some(Target::Mount(MountPoint::new("/mnt/a").unwrap())));
}

#[test]
fn both_definitions_of_a_volume_keep_their_consumers_from_running() {
    let one = volume("one", "/mnt/a", &file("/srv/1"));
    let config = parse(&[
        &(one.clone() + "consumers = [\"a.service\"]\nauto = false\n"),
        &(one + "consumers = [\"b.service\"]\n"),
    ]);
    let refused = &config.refused[&VolumeName::new("one").unwrap()];
    assert_eq!(refused.consumers, ["a.service", "b.service"].map(|unit| UnitName::new(unit).unwrap()));
    assert!(refused.auto);
}

#[test]
fn two_volumes_on_one_mount_point_or_backing_are_both_refused() {
    let one = volume("one", "/mnt/a", &file("/srv/1"));
    let config = parse(&[&(one.clone() + &volume("two", "/mnt/a", &file("/srv/2")))]);
    assert_eq!(refused(&config), ["one", "two"]);
    let config = parse(&[&(one.clone() + &volume("two", "/mnt/b", &file("/srv/1")))]);
    assert_eq!(refused(&config), ["one", "two"]);
    let config = parse(&[&one, &one]);
    assert_eq!(refused(&config), ["one"]);
}

#[test]
fn nested_volumes_are_fine_until_they_wait_for_each_other() {
    let outer = volume("outer", "/mnt/a", &file("/srv/1"));
    let inner = volume("inner", "/mnt/a/b", &file("/srv/2"));
    assert_eq!(refused(&parse(&[&(outer + &inner)])), Vec::<&str>::new());
    let outer = volume("outer", "/mnt/a", &file("/mnt/a/b/outer.img"));
    assert_eq!(refused(&parse(&[&(outer + &inner)])), ["inner", "outer"]);
    let own = volume("own", "/mnt/a", &file("/mnt/a/own.img"));
    assert_eq!(refused(&parse(&[&own])), ["own"]);
    let above = volume("above", "/mnt/a", "{ device = \"/dev/mapper/secretfs-below\" }");
    let below = volume("below", "/mnt/b", &file("/mnt/a/below.img"));
    assert_eq!(refused(&parse(&[&(above + &below)])), ["above"]);
}

const SWAP: &str = r#"
[volume.swap]
backing = { device = "/dev/disk/by-id/nvme-x" }
filesystem = { type = "swap", label = "swap", mkfs-options = ["--check"], mount-options = ["pri=10", "discard"] }
luks = { discard = true }
key = { source = "s3+kms", bucket = "b", object = "o", kms-key = "k" }
"#;

#[test]
fn swap_space_needs_no_mount_point_and_is_ephemeral() {
    let config = parse(&[SWAP]);
    let volume = &config.volumes[&VolumeName::new("swap").unwrap()];
    let filesystem = Filesystem {
        label: Some("swap".to_owned()),
        mkfs_options: vec!["--check".to_owned()],
        mount_options: ["pri=10", "discard"].map(str::to_owned).to_vec(),
        ..Filesystem::of(FilesystemType::Swap)
    };
    let wanted = (&Target::Swap, Lifecycle::Ephemeral, &filesystem);
    assert_eq!((&volume.target, volume.lifecycle, &volume.filesystem), wanted);
    assert_eq!(volume.unit().as_str(), "dev-mapper-secretfs\\x2dswap.swap");
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let two = SWAP.replace("volume.swap", "volume.two").replace("nvme-x", "nvme-y");
    assert_eq!(refused(&parse(&[&(SWAP.to_owned() + &two)])), Vec::<&str>::new());
    let explicit = SWAP.replace("luks =", "lifecycle = \"ephemeral\"\nluks =");
    assert_eq!(refused(&parse(&[&explicit])), Vec::<&str>::new());
}

#[test]
fn swap_space_over_a_file_is_accepted_with_a_warning() {
    let text = SWAP.replace("{ device = \"/dev/disk/by-id/nvme-x\" }", &file("/srv/swap.img"));
    let config = parse(&[&text]);
    assert_eq!(config.volumes.len(), 1);
    assert_eq!(config.warnings[0].key, "volume.swap.backing.file");
}

#[test]
fn refused_swap_space_is_known_to_be_that() {
    let config = parse(&[&SWAP.replace("luks =", "mount = \"/mnt/a\"\nluks =")]);
    assert_eq!(config.refused[&VolumeName::new("swap").unwrap()].target, Some(Target::Swap));
}

#[test]
fn files_are_gathered_in_order() {
    let read = |path: &str| match path {
        "/etc/secretfs.toml" => Err(io::Error::from(io::ErrorKind::NotFound)),
        "/etc/secretfs.toml.d/20.toml" => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        other => Ok(other.as_bytes().to_owned()),
    };
    let list = |_: &str| Ok(["30.toml", "20.toml", "10.toml", "10.toml~", ".11.toml"].map(str::to_owned).to_vec());
    let Gathered { sources, damaged, .. } = gather(list, read);
    let paths: Vec<&str> = sources.iter().map(|source| source.path.as_str()).collect();
    assert_eq!(paths, ["/etc/secretfs.toml.d/10.toml", "/etc/secretfs.toml.d/30.toml"]);
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].1.to_string(), "/etc/secretfs.toml.d/20.toml:1:1: cannot be read: permission denied");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(?s).{0,200}") {
        let _ = parse(&[&text]);
    }

    #[test]
    fn no_damage_makes_it_panic(at in 0..GOOD.len(), with in ".{0,3}") {
        let mut text = GOOD.to_owned();
        text.replace_range(at..=at, &with);
        let _ = parse(&[&text]);
    }
}
