mod swap;
mod wipe;

use proptest::prelude::*;

use super::*;
use crate::config::{Config, Source, Target};
use crate::key::KeyForm;

const SECOND: Duration = Duration::from_secs(1);

fn volume(lifecycle: &str) -> Volume {
    volume_with(lifecycle, "")
}

/// A volume with more lines in its table.
fn volume_with(lifecycle: &str, lines: &str) -> Volume {
    let text = format!(
        "[volume.scratch]\nmount = \"/mnt/secretfs\"\nlifecycle = \"{lifecycle}\"\nstart-timeout = \"60s\"\n\
         backing = {{ file = \"/srv/scratch.img\", size = \"64MiB\" }}\n\
         key = {{ source = \"s3+kms\", bucket = \"b\", object = \"o\", kms-key = \"k\" }}\n{lines}"
    );
    let config = Config::parse(&[Source { path: "test.toml".to_owned(), text }]);
    config.volumes.into_values().next().expect("the text above is a volume")
}

fn persistent() -> Machine {
    Machine::new(&volume("persistent"), 1)
}

/// Feeds events one second apart; gives the actions without the status texts.
fn drive(machine: &mut Machine, events: impl IntoIterator<Item = Event>) -> Vec<Action> {
    let mut actions = Vec::new();
    for (now, event) in (0..).zip(events) {
        actions.extend(machine.on_event(SECOND * now, event));
    }
    actions.retain(|action| !matches!(action, Action::Status(_)));
    actions
}

fn nothing_there() -> Event {
    Event::Surveyed { mapping: Link::Absent, mount: Link::Absent }
}

fn attached(contents: Contents) -> Event {
    Event::Attached { contents, formatted_this_boot: false, wipe_begun: false }
}

fn ours() -> Contents {
    Contents::Luks { ours: true, unfinished: false }
}

fn key() -> Event {
    Event::KeyFetched { form: KeyForm::Binary, length: 64 }
}

fn ext4(unfinished: bool) -> Event {
    Event::Inspected { contents: Contents::Signature("ext4".to_owned()), unfinished, wipe_due: false }
}

fn failed(step: Step, cause: Cause) -> Event {
    Event::Failed(step, Failure::new(cause, "test"))
}

/// The events that bring a formatted volume up.
fn up() -> Vec<Event> {
    vec![
        Event::Begin,
        nothing_there(),
        Event::Done(Step::Guard),
        attached(ours()),
        key(),
        Event::Done(Step::Unlock),
        ext4(false),
        Event::Done(Step::Mount),
        Event::Done(Step::Grow),
        Event::Done(Step::Verify),
    ]
}

#[test]
fn a_formatted_volume_comes_up() {
    let wanted = vec![
        Action::Run(Step::Survey),
        Action::Run(Step::Guard),
        Action::Run(Step::Attach),
        Action::Run(Step::FetchKey),
        Action::Run(Step::Unlock),
        Action::DropKey,
        Action::Run(Step::Inspect),
        Action::Run(Step::Mount),
        Action::Run(Step::Grow),
        Action::Run(Step::Verify),
        Action::Ready,
        Action::Tell(Story::Ready { adopted: false }),
        Action::WipeFreeSpace,
    ];
    assert_eq!(drive(&mut persistent(), up()), wanted);
}

#[test]
fn what_systemd_may_have_mounted_already_is_unmounted() {
    let stop = [Event::StopRequested, ext4(false), Event::Done(Step::Unmount), Event::Done(Step::Close)];
    let wanted = [Action::Abandon, Action::Run(Step::Unmount), Action::Run(Step::Close), Action::Run(Step::Detach)];
    let mut machine = persistent();
    drive(&mut machine, up().into_iter().take(6));
    assert_eq!(drive(&mut machine, stop.clone())[2..], wanted);
    // The same for one that is found open.
    let mut machine = persistent();
    let found = [Event::Surveyed { mapping: Link::Ours, mount: Link::Absent }, Event::Done(Step::Guard)];
    drive(&mut machine, [Event::Begin].into_iter().chain(found));
    assert_eq!(drive(&mut machine, stop)[2..], wanted);
}

#[test]
fn an_owner_is_set_on_what_is_mounted_and_before_it_is_verified() {
    let mut machine = Machine::new(&volume_with("persistent", "filesystem = { owner = \"postgres\" }\n"), 1);
    let mut events = up();
    events.insert(events.len() - 1, Event::Done(Step::Own));
    let actions = drive(&mut machine, events);
    let wanted = [Step::Mount, Step::Grow, Step::Own, Step::Verify].map(Action::Run);
    assert_eq!(actions[7..11], wanted);
    assert_eq!(actions[11], Action::Ready);
}

#[test]
fn an_owner_that_is_not_known_takes_everything_down() {
    let mut machine = Machine::new(&volume_with("persistent", "filesystem = { owner = \"nobodyelse\" }\n"), 1);
    let mut events = up();
    events.pop();
    events.extend([
        failed(Step::Own, Cause::NoSuchOwner),
        Event::Done(Step::Unmount),
        Event::Done(Step::Close),
        Event::Done(Step::Detach),
    ]);
    let actions = drive(&mut machine, events);
    assert!(!actions.contains(&Action::Ready), "{actions:?}");
    let wanted = [Step::Unmount, Step::Close, Step::Detach].map(Action::Run);
    assert_eq!(actions[actions.len() - 4..actions.len() - 1], wanted);
    assert_eq!(actions.last(), Some(&Action::Exit(Exit::Permanent)));
}

#[test]
fn a_blank_device_is_formatted_first() {
    let events = [
        Event::Begin,
        nothing_there(),
        Event::Done(Step::Guard),
        attached(Contents::Blank),
        key(),
        Event::Done(Step::Format(Kdf::Pbkdf2Minimal)),
        Event::Done(Step::Unlock),
        Event::Inspected { contents: Contents::Blank, unfinished: true, wipe_due: false },
        Event::Done(Step::MakeFilesystem),
        Event::Done(Step::FinishFormat),
    ];
    let wanted = vec![
        Action::Run(Step::Survey),
        Action::Run(Step::Guard),
        Action::Run(Step::Attach),
        Action::Run(Step::FetchKey),
        Action::Run(Step::Format(Kdf::Pbkdf2Minimal)),
        Action::Tell(Story::Formatted),
        Action::Run(Step::Unlock),
        Action::DropKey,
        Action::Run(Step::Inspect),
        Action::Run(Step::MakeFilesystem),
        Action::Run(Step::FinishFormat),
        Action::Run(Step::Mount),
    ];
    assert_eq!(drive(&mut persistent(), events), wanted);
}

#[test]
fn a_running_volume_is_taken_over_without_a_key() {
    let events = [Event::Begin, Event::Surveyed { mapping: Link::Ours, mount: Link::Ours }, Event::Done(Step::Verify)];
    let wanted = vec![
        Action::Run(Step::Survey),
        Action::Run(Step::Verify),
        Action::Ready,
        Action::Tell(Story::Ready { adopted: true }),
        Action::WipeFreeSpace,
    ];
    assert_eq!(drive(&mut persistent(), events), wanted);
}

#[test]
fn an_open_mapping_is_mounted_without_a_key() {
    let found = Event::Surveyed { mapping: Link::Ours, mount: Link::Absent };
    let events = [Event::Begin, found, Event::Done(Step::Guard), ext4(false)];
    let wanted = [Step::Survey, Step::Guard, Step::Inspect, Step::Mount].map(Action::Run).to_vec();
    assert_eq!(drive(&mut persistent(), events), wanted);
}

#[test]
fn an_interrupted_mkfs_is_started_over() {
    let events = [
        Event::Begin,
        Event::Surveyed { mapping: Link::Ours, mount: Link::Absent },
        Event::Done(Step::Guard),
        ext4(true),
        Event::Done(Step::Close),
        nothing_there(),
        Event::Done(Step::Guard),
        attached(Contents::Luks { ours: true, unfinished: true }),
        key(),
    ];
    let wanted = vec![
        Action::Run(Step::Survey),
        Action::Run(Step::Guard),
        Action::Run(Step::Inspect),
        Action::Run(Step::Close),
        Action::Run(Step::Survey),
        Action::Run(Step::Guard),
        Action::Run(Step::Attach),
        Action::Run(Step::FetchKey),
        Action::Run(Step::Format(Kdf::Pbkdf2Minimal)),
    ];
    assert_eq!(drive(&mut persistent(), events), wanted);
}

#[test]
fn a_denial_takes_everything_down_and_fails_for_good() {
    let events = [
        Event::Begin,
        nothing_there(),
        Event::Done(Step::Guard),
        attached(ours()),
        failed(Step::FetchKey, Cause::KmsAccessDenied),
        Event::Done(Step::Detach),
    ];
    let failure = Failure::new(Cause::KmsAccessDenied, "test");
    let wanted = vec![
        Action::Run(Step::Survey),
        Action::Run(Step::Guard),
        Action::Run(Step::Attach),
        Action::Run(Step::FetchKey),
        Action::DropKey,
        Action::Tell(Story::Failed { step: Step::FetchKey, failure }),
        Action::FailWaiting,
        Action::Run(Step::Detach),
        Action::Exit(Exit::Permanent),
    ];
    assert_eq!(drive(&mut persistent(), events), wanted);
}

#[test]
fn an_outage_is_waited_out_and_then_given_up() {
    let mut machine = persistent();
    let mut now = Duration::ZERO;
    machine.on_event(now, Event::Begin);
    let mut tries = 0;
    let last = loop {
        tries += 1;
        machine.on_event(now, nothing_there());
        machine.on_event(now, Event::Done(Step::Guard));
        machine.on_event(now, attached(ours()));
        let actions = machine.on_event(now, failed(Step::FetchKey, Cause::AwsUnreachable));
        let Some(Action::WakeAt(at)) = actions.last().cloned() else { break actions };
        assert!(at > now, "a wait that does not wait");
        now = at;
        assert_eq!(machine.on_event(now, Event::Woke).last(), Some(&Action::Run(Step::Survey)));
    };
    assert!((4..=9).contains(&tries), "{tries} tries in 60 s");
    assert_eq!(last.last(), Some(&Action::Run(Step::Detach)));
    assert!(!last.contains(&Action::FailWaiting), "what waits for the device goes on waiting for the restart");
    assert_eq!(machine.on_event(now, Event::Done(Step::Detach)), vec![Action::Exit(Exit::Transient)]);
}

#[test]
fn foreign_links_are_left_alone() {
    for (mapping, mount) in [
        (Link::Foreign("x".to_owned()), Link::Absent),
        (Link::Absent, Link::Foreign("x".to_owned())),
        (Link::Foreign("x".to_owned()), Link::Foreign("x".to_owned())),
    ] {
        let actions = drive(&mut persistent(), [Event::Begin, Event::Surveyed { mapping, mount }]);
        let runs = actions.iter().filter(|action| matches!(action, Action::Run(_))).count();
        assert_eq!((runs, actions.last()), (1, Some(&Action::Exit(Exit::Permanent))), "{actions:?}");
    }
}

#[test]
fn a_volume_that_fails_its_takeover_is_left_alone() {
    let events = [
        Event::Begin,
        Event::Surveyed { mapping: Link::Ours, mount: Link::Ours },
        failed(Step::Verify, Cause::ChainBroken),
    ];
    let actions = drive(&mut persistent(), events);
    assert_eq!(actions.last(), Some(&Action::Exit(Exit::Permanent)));
    assert!(!actions.contains(&Action::Run(Step::Unmount)), "{actions:?}");
}

#[test]
fn a_stop_unmounts_closes_and_detaches() {
    let mut machine = persistent();
    drive(&mut machine, up());
    let events = [
        Event::StopRequested,
        Event::MountsChanged,
        Event::Done(Step::Unmount),
        Event::Done(Step::Close),
        Event::Done(Step::Detach),
    ];
    let wanted = vec![
        Action::Stopping,
        Action::DropKey,
        Action::Run(Step::Unmount),
        Action::Run(Step::Close),
        Action::Run(Step::Detach),
        Action::Tell(Story::Stopped),
        Action::Exit(Exit::Stopped),
    ];
    assert_eq!(drive(&mut machine, events), wanted);
}

#[test]
fn a_stop_abandons_the_fetch() {
    let mut machine = persistent();
    drive(&mut machine, [Event::Begin, nothing_there(), Event::Done(Step::Guard), attached(ours())]);
    let wanted = vec![Action::Stopping, Action::DropKey, Action::Abandon, Action::Run(Step::Detach)];
    assert_eq!(drive(&mut machine, [Event::StopRequested, Event::Abandoned(Step::FetchKey)]), wanted);
}

#[test]
fn a_busy_unmount_is_tried_again_and_then_said() {
    let mut machine = persistent();
    drive(&mut machine, up());
    machine.on_event(SECOND, Event::StopRequested);
    let busy = || failed(Step::Unmount, Cause::UnmountFailed);
    let actions = machine.on_event(SECOND * 2, busy());
    assert_eq!(actions.last(), Some(&Action::WakeAt(SECOND * 3)));
    assert_eq!(machine.on_event(SECOND * 3, Event::Woke).last(), Some(&Action::Run(Step::Unmount)));
    let actions = machine.on_event(SECOND * 40, busy());
    assert_eq!(actions.last(), Some(&Action::Exit(Exit::Permanent)));
}

#[test]
fn a_lost_mount_stops_the_unit_and_fails_it() {
    let mut machine = persistent();
    drive(&mut machine, up());
    let actions = drive(&mut machine, [Event::MountsChanged, failed(Step::Verify, Cause::MountLost)]);
    let failure = Failure::new(Cause::MountLost, "test");
    assert_eq!(actions, vec![Action::Run(Step::Verify), Action::Tell(Story::Lost(failure)), Action::StopSelf]);
    let stop = [Event::StopRequested, Event::Done(Step::Unmount), Event::Done(Step::Close), Event::Done(Step::Detach)];
    let actions: Vec<Action> = stop.into_iter().flat_map(|event| machine.on_event(SECOND, event)).collect();
    assert_eq!(actions.last(), Some(&Action::Exit(Exit::Permanent)));
    assert!(!actions.iter().any(|action| matches!(action, Action::Status(_))), "the loss stays said: {actions:?}");
}

#[test]
fn a_change_during_a_look_is_looked_at() {
    let mut machine = persistent();
    drive(&mut machine, up());
    let events = [Event::MountsChanged, Event::MountsChanged, Event::Done(Step::Verify), Event::Done(Step::Verify)];
    assert_eq!(drive(&mut machine, events), vec![Action::Run(Step::Verify), Action::Run(Step::Verify)]);
}

#[test]
fn a_new_device_ends_the_wait_for_a_device_and_no_other() {
    let mut machine = persistent();
    drive(&mut machine, [Event::Begin, nothing_there(), Event::Done(Step::Guard)]);
    let actions = drive(&mut machine, [failed(Step::Attach, Cause::BackingMissing)]);
    assert!(actions.contains(&Action::WatchDevices), "{actions:?}");
    assert_eq!(drive(&mut machine, [Event::DeviceAppeared]), [Action::Run(Step::Survey)]);
    // One that comes while something runs changes nothing.
    assert_eq!(drive(&mut machine, [Event::DeviceAppeared]), []);
    drive(&mut machine, [nothing_there(), Event::Done(Step::Guard), attached(ours())]);
    let actions = drive(&mut machine, [failed(Step::FetchKey, Cause::AwsUnreachable)]);
    assert!(!actions.contains(&Action::WatchDevices), "{actions:?}");
}

#[test]
fn openings() {
    use Lifecycle::{Ephemeral, Persistent};
    let luks = |ours, unfinished| Contents::Luks { ours, unfinished };
    let opened = |lifecycle, contents, this_boot| {
        decide_opening(lifecycle, &contents, this_boot, false).map_err(|failure| failure.cause)
    };
    for lifecycle in [Ephemeral, Persistent] {
        assert_eq!(opened(lifecycle, Contents::Blank, false), Ok(Opening::Format));
        assert_eq!(opened(lifecycle, Contents::Begun, false), Ok(Opening::Format));
        assert_eq!(opened(lifecycle, luks(true, true), true), Ok(Opening::Format));
        let foreign = Contents::Signature("xfs".to_owned());
        assert_eq!(opened(lifecycle, foreign, false), Err(Cause::ForeignSignature));
        assert_eq!(opened(lifecycle, Contents::Unknown { offset: 0 }, false), Err(Cause::NotBlank));
        assert_eq!(decide_opening(lifecycle, &luks(true, true), false, true), Ok(Opening::Resume));
        assert!(decide_opening(lifecycle, &luks(false, true), false, true) != Ok(Opening::Resume));
    }
    assert_eq!(opened(Persistent, luks(true, false), false), Ok(Opening::Unlock));
    assert_eq!(opened(Persistent, luks(false, false), false), Ok(Opening::Unlock));
    assert_eq!(opened(Ephemeral, luks(true, false), true), Ok(Opening::Unlock));
    assert_eq!(opened(Ephemeral, luks(true, false), false), Ok(Opening::Format));
    assert_eq!(opened(Ephemeral, luks(false, false), false), Err(Cause::ForeignSignature));
}

#[test]
fn only_the_configured_file_system_will_do() {
    let signature = |kind: &str| Contents::Signature(kind.to_owned());
    assert_eq!(decide::check_filesystem(FilesystemType::Ext4, &signature("ext4")), Ok(()));
    assert_eq!(decide::check_filesystem(FilesystemType::Ext4, &signature("ext3")), Ok(()));
    for contents in [signature("xfs"), Contents::Blank, Contents::Unknown { offset: 0 }, ours()] {
        let failure = decide::check_filesystem(FilesystemType::Ext4, &contents).unwrap_err();
        assert_eq!(failure.cause, Cause::FilesystemMissing);
    }
    assert_eq!(decide::check_filesystem(FilesystemType::Swap, &signature("swap")), Ok(()));
    // A hibernated system's.
    assert!(decide::check_filesystem(FilesystemType::Swap, &signature("swsuspend")).is_err());
}

/// What may come of a step, chosen by `pick`.
fn outcome(step: Step, pick: u8) -> Event {
    let causes = [Cause::KmsAccessDenied, Cause::AwsUnreachable, Cause::MountLost, Cause::System, Cause::WrongKey];
    if pick.is_multiple_of(4) {
        return failed(step, causes[usize::from(pick / 4) % causes.len()]);
    }
    let link = |bits: u8| match bits % 4 {
        0 => Link::Ours,
        1 => Link::Foreign("x".to_owned()),
        _ => Link::Absent,
    };
    match step {
        Step::Survey => Event::Surveyed { mapping: link(pick / 4), mount: link(pick / 16) },
        Step::Attach => Event::Attached {
            contents: match pick % 3 {
                0 => Contents::Blank,
                1 => ours(),
                _ => Contents::Luks { ours: true, unfinished: true },
            },
            formatted_this_boot: false,
            wipe_begun: pick.is_multiple_of(2),
        },
        Step::FetchKey => key(),
        Step::Inspect if pick.is_multiple_of(3) => swap::found(pick.is_multiple_of(2)),
        Step::Inspect if pick.is_multiple_of(5) => {
            Event::Inspected { contents: Contents::Unknown { offset: 0 }, unfinished: true, wipe_due: true }
        }
        Step::Inspect => ext4(pick.is_multiple_of(2)),
        other => Event::Done(other),
    }
}

proptest! {
    /// Any story: what steps give, when the mounts change and when systemd says stop are chosen at random.
    #[test]
    fn every_story_keeps_the_rules(picks in proptest::collection::vec(any::<(u8, u8)>(), 1..200), kind in 0..3_u8) {
        let volume = match kind {
            0 => volume("ephemeral"),
            1 => volume("persistent"),
            _ => swap::volume("start-timeout = \"60s\"\n"),
        };
        let is_swap = volume.target == Target::Swap;
        let mut machine = Machine::new(&volume, 3);
        let mut now = Duration::ZERO;
        let mut running = None;
        let mut key_held = false;
        let mut readies = 0;
        let mut ended = false;
        let mut wake = None;
        let mut verified = false;
        let mut next = Some(Event::Begin);
        for (pick, chance) in picks {
            let event = match next.take() {
                Some(event) => event,
                None if chance < 8 => Event::StopRequested,
                None if chance < 40 => Event::MountsChanged,
                None => match (running.take(), wake.take()) {
                    (Some(step), _) => outcome(step, pick),
                    (None, Some(at)) => { now = at; Event::Woke }
                    (None, None) => Event::MountsChanged,
                },
            };
            match &event {
                Event::KeyFetched { .. } => key_held = true,
                Event::Done(Step::Verify) => verified = true,
                Event::Surveyed { .. } | Event::Failed(..) => verified = false,
                _ => {}
            }
            let was_failure = matches!(event, Event::Failed(..));
            let actions = machine.on_event(now, event);
            prop_assert!(!ended || actions.is_empty(), "an action after the end: {actions:?}");
            if was_failure && running.is_none() && !ended {
                let goes_on = actions.iter().any(|action| matches!(
                    action,
                    Action::WakeAt(_) | Action::Run(_) | Action::Exit(_) | Action::StopSelf | Action::Status(_)
                ));
                prop_assert!(goes_on, "a failure that leads nowhere");
            }
            for action in actions {
                match action {
                    Action::Run(step) => {
                        prop_assert_eq!(running.replace(step), None, "two steps at once");
                        if matches!(step, Step::Unlock | Step::Format(_)) {
                            prop_assert!(key_held, "{step} without a key");
                        }
                        if matches!(step, Step::Guard | Step::Grow | Step::Own) {
                            prop_assert!(!is_swap, "{step} of swap space");
                        }
                    }
                    Action::DropKey => key_held = false,
                    Action::Ready => {
                        readies += 1;
                        prop_assert!(verified, "ready before the chain was verified");
                    }
                    Action::WakeAt(at) => wake = Some(at),
                    Action::Abandon => next = running.take().map(Event::Abandoned),
                    Action::Exit(_) => ended = true,
                    _ => {}
                }
            }
            now += Duration::from_millis(10);
        }
        prop_assert!(readies <= 1, "READY=1 was said {readies} times");
        prop_assert!(!(ended && key_held), "the key outlived the volume's daemon");
    }
}
