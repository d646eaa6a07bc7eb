use super::*;
use crate::progress::Progress;

/// A volume that is zeroed before it is ready.
fn zeroed_first() -> Machine {
    Machine::new(&volume_with("persistent", "wipe = \"zero\"\nwipe-before-ready = true\n"), 1)
}

fn wipe_due() -> Event {
    Event::Inspected { contents: Contents::Unknown { offset: 0 }, unfinished: true, wipe_due: true }
}

/// The events that lead to an interrupted wipe of `machine`, whose header says how far it came.
fn resumed() -> Vec<Event> {
    vec![
        Event::Begin,
        nothing_there(),
        Event::Done(Step::Guard),
        Event::Attached {
            contents: Contents::Luks { ours: true, unfinished: true },
            formatted_this_boot: false,
            wipe_begun: true,
        },
        key(),
    ]
}

#[test]
fn a_volume_is_zeroed_before_anything_is_made_on_it() {
    let mut machine = zeroed_first();
    let mut events = resumed();
    events.extend([
        Event::Done(Step::Unlock),
        wipe_due(),
        Event::Done(Step::Wipe),
        Event::Inspected { contents: Contents::Blank, unfinished: true, wipe_due: false },
    ]);
    let actions = drive(&mut machine, events);
    let wanted = [
        Action::Run(Step::Unlock),
        Action::DropKey,
        Action::Run(Step::Inspect),
        Action::Run(Step::Wipe),
        Action::Run(Step::Inspect),
        Action::Run(Step::MakeFilesystem),
    ];
    assert_eq!(actions[4..], wanted, "{actions:?}");
}

#[test]
fn a_key_that_was_changed_during_the_zeroing_formats_anew() {
    let mut machine = zeroed_first();
    let mut events = resumed();
    events.extend([failed(Step::Unlock, Cause::WrongKey), Event::Done(Step::Format(Kdf::Pbkdf2Minimal))]);
    let actions = drive(&mut machine, events);
    let wanted =
        [Action::Run(Step::Format(Kdf::Pbkdf2Minimal)), Action::Tell(Story::Formatted), Action::Run(Step::Unlock)];
    assert_eq!(actions[5..], wanted, "{actions:?}");
    // With the new header it can only be a real fault.
    let actions = drive(&mut machine, [failed(Step::Unlock, Cause::WrongKey)]);
    assert!(!actions.iter().any(|action| matches!(action, Action::Run(Step::Format(_)))), "{actions:?}");
}

#[test]
fn a_stop_abandons_the_zeroing_and_closes() {
    let mut machine = zeroed_first();
    let mut events = resumed();
    events.extend([Event::Done(Step::Unlock), wipe_due()]);
    drive(&mut machine, events);
    let progress = Progress { done: 1, total: 4, rate: 1 };
    let events = [Event::Wiping(progress), Event::StopRequested, Event::Wiping(progress), Event::Abandoned(Step::Wipe)];
    let wanted = [Action::Stopping, Action::DropKey, Action::Abandon, Action::Run(Step::Close)];
    assert_eq!(drive(&mut machine, events), wanted);
}

#[test]
fn nothing_is_said_where_nothing_is_to_be_zeroed() {
    let mut machine = Machine::new(&volume_with("persistent", ""), 1);
    drive(&mut machine, up());
    assert_eq!(machine.on_event(SECOND, Event::WipeEnded(Ok(()))), []);
}

#[test]
fn free_space_is_zeroed_beside_a_ready_volume() {
    let mut machine = Machine::new(&volume_with("persistent", "wipe = \"zero\"\n"), 1);
    let actions = drive(&mut machine, up());
    assert_eq!(actions.last(), Some(&Action::WipeFreeSpace));
    let said = |actions: Vec<Action>| match actions.as_slice() {
        [Action::Status(text)] => text.clone(),
        other => panic!("{other:?}"),
    };
    let progress = Event::Wiping(Progress { done: 1 << 30, total: 4 << 30, rate: 1 << 30 });
    let text = said(machine.on_event(SECOND, progress));
    assert_eq!(
        text,
        "Mounted and verified; holding the volume, zeroing its free space: 25 % of 4.0 GiB, 1.0 GiB/s, 3 s left"
    );
    // The look at the chain goes its own way.
    assert_eq!(drive(&mut machine, [Event::MountsChanged, Event::WipeEnded(Ok(()))]), [Action::Run(Step::Verify)]);
    let failure = Failure::new(Cause::WipeFailed, "I/O error");
    let text = said(machine.on_event(SECOND, Event::WipeEnded(Err(failure))));
    assert!(text.contains("its free space is not zeroed") && text.contains("I/O error"), "{text}");
}
