//! Swap space: what is left out, and what is the same.

use super::*;

/// Swap space, with more lines in its table.
pub(super) fn volume(lines: &str) -> Volume {
    let text = format!(
        "[volume.swap]\nbacking = {{ device = \"/dev/disk/by-id/x\" }}\nfilesystem = {{ type = \"swap\" }}\n\
         key = {{ source = \"s3+kms\", bucket = \"b\", object = \"o\", kms-key = \"k\" }}\n{lines}"
    );
    let config = Config::parse(&[Source { path: "test.toml".to_owned(), text }]);
    config.volumes.into_values().next().expect("the text above is a volume")
}

pub(super) fn found(unfinished: bool) -> Event {
    Event::Inspected { contents: Contents::Signature("swap".to_owned()), unfinished, wipe_due: false }
}

/// No mount point, no file system to grow, no root directory.
#[test]
fn swap_space_is_made_and_put_to_use() {
    let mut machine = Machine::new(&volume(""), 1);
    let events = [
        Event::Begin,
        nothing_there(),
        attached(ours()),
        key(),
        Event::Done(Step::Format(Kdf::Pbkdf2Minimal)),
        Event::Done(Step::Unlock),
        Event::Inspected { contents: Contents::Unknown { offset: 0 }, unfinished: true, wipe_due: false },
        Event::Done(Step::MakeFilesystem),
        Event::Done(Step::FinishFormat),
        Event::Done(Step::Mount),
        Event::Done(Step::Verify),
    ];
    let wanted = vec![
        Action::Run(Step::Survey),
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
        Action::Run(Step::Verify),
        Action::Ready,
        Action::Tell(Story::Ready { adopted: false }),
        Action::WipeFreeSpace,
    ];
    assert_eq!(drive(&mut machine, events), wanted);
    let actions = drive(&mut machine, [Event::MountsChanged, failed(Step::Verify, Cause::SwapLost)]);
    let failure = Failure::new(Cause::SwapLost, "test");
    assert_eq!(actions, vec![Action::Run(Step::Verify), Action::Tell(Story::Lost(failure)), Action::StopSelf]);
}

#[test]
fn swap_space_of_this_boot_is_not_made_again() {
    let events = [
        Event::Begin,
        nothing_there(),
        Event::Attached { contents: ours(), formatted_this_boot: true, wipe_begun: false },
        key(),
        Event::Done(Step::Unlock),
        found(false),
    ];
    let wanted = vec![
        Action::Run(Step::Survey),
        Action::Run(Step::Attach),
        Action::Run(Step::FetchKey),
        Action::Run(Step::Unlock),
        Action::DropKey,
        Action::Run(Step::Inspect),
        Action::Run(Step::Mount),
    ];
    assert_eq!(drive(&mut Machine::new(&volume(""), 1), events), wanted);
    let open = Event::Surveyed { mapping: Link::Ours, mount: Link::Absent };
    let wanted = [Step::Survey, Step::Inspect, Step::Mount].map(Action::Run).to_vec();
    let events = [Event::Begin, open, found(false)];
    assert_eq!(drive(&mut Machine::new(&volume(""), 1), events), wanted);
}
