//! With the real LVM over loop devices; without device-mapper, so that nothing is activated.

use super::*;
use crate::testing::{Scratch, put, run};

const SIZE: u64 = 64 << 20;

/// Disks that are loop devices; they are detached at the end.
struct Disks {
    scratch: Scratch,
    members: Vec<Member>,
}

impl Disks {
    fn new() -> Self {
        let mut disks = Self { scratch: Scratch::new(), members: Vec::new() };
        for name in ["A", "B"] {
            let file = disks.scratch.device(name, SIZE);
            let path = tool::run("losetup", &["--find", "--show", file.as_str()]).unwrap();
            disks.members.push(Member { identity: name.to_owned(), path: path.trim().to_owned() });
        }
        disks
    }

    fn lvm(&self) -> Lvm {
        Lvm::detached(&self.scratch.path("locks"))
    }

    fn claims(&self) -> Claims {
        Claims::below(&self.scratch.path(""))
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        ["A", "B"].map(|name| fs::read(self.scratch.path(name)).unwrap()).into()
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for member in &self.members {
            let _ = tool::run("losetup", &["--detach", &member.path]);
        }
    }
}

fn name() -> VolumeName {
    VolumeName::new("t-e.s_t").unwrap()
}

/// Puts something on the second disk.
type Spoil = fn(&Disks);

const STRIPED: Layout = Layout::Striped { stripe_size: 16384 };

#[test]
#[ignore = "needs root, loop devices and lvm2"]
fn blank_disks_become_one_device_and_are_found_again() {
    for layout in [STRIPED, Layout::Linear] {
        let disks = Disks::new();
        let (lvm, claims) = (disks.lvm(), disks.claims());
        let examine = |members: &[Member]| lvm.examine(&name(), layout, members, &[]);
        let create = Plan::Create { blank: disks.members.clone(), begun: Vec::new() };
        assert_eq!(examine(&disks.members), Ok(create));
        lvm.attach(&name(), layout, &disks.members, &claims).unwrap();
        assert_eq!(claims.begun(&name()), Ok(Vec::new()));
        assert_eq!(examine(&disks.members), Ok(Plan::Activate));
        let made = disks.bytes();
        lvm.attach(&name(), layout, &disks.members, &claims).unwrap();
        assert!(disks.bytes() == made, "the second start changed something");

        let failure = examine(&disks.members[..1]).unwrap_err();
        assert_eq!(failure.cause, Cause::BackingMissing, "{failure}");
        assert!(failure.detail.contains("lacks the physical volume "), "{failure}");
        let other = if layout == STRIPED { Layout::Linear } else { STRIPED };
        let failure = lvm.examine(&name(), other, &disks.members, &[]).unwrap_err();
        assert_eq!(failure.cause, Cause::BackingMismatch, "{failure}");
        let failure = lvm.examine(&VolumeName::new("x").unwrap(), layout, &disks.members, &[]).unwrap_err();
        assert_eq!(failure.cause, Cause::ForeignSignature, "{failure}");
    }
}

#[test]
#[ignore = "needs root, loop devices and lvm2"]
fn a_creation_that_was_interrupted_is_completed() {
    let disks = Disks::new();
    let (lvm, claims) = (disks.lvm(), disks.claims());
    let begin = || claims.begin(&name(), &["A".to_owned(), "B".to_owned()]).unwrap();
    // After the first disk.
    begin();
    lvm.run("pvcreate", &disks.members, &[&disks.members[0].path]).unwrap();
    lvm.attach(&name(), STRIPED, &disks.members, &claims).unwrap();
    assert_eq!(lvm.examine(&name(), STRIPED, &disks.members, &[]), Ok(Plan::Activate));
    // After the volume group.
    begin();
    lvm.run("lvremove", &disks.members, &["--yes", &group(&name())]).unwrap();
    assert_eq!(lvm.examine(&name(), STRIPED, &disks.members, &[]), Ok(Plan::CreateData));
    lvm.attach(&name(), STRIPED, &disks.members, &claims).unwrap();
    assert_eq!(lvm.examine(&name(), STRIPED, &disks.members, &[]), Ok(Plan::Activate));
}

#[test]
#[ignore = "needs root, loop devices and lvm2"]
fn what_is_not_blank_is_left_as_it_is() {
    let spoil: [(&str, Spoil, Cause); 4] = [
        ("ext4", |disks| run("mkfs.ext4", &["-q", &disks.members[1].path]), Cause::ForeignSignature),
        (
            "a physical volume",
            |disks| drop(disks.lvm().run("pvcreate", &disks.members, &[&disks.members[1].path]).unwrap()),
            Cause::ForeignSignature,
        ),
        (
            "somebody's group of that name",
            |disks| {
                let options = [&group(&name()), disks.members[1].path.as_str()];
                drop(disks.lvm().run("vgcreate", &disks.members, &options).unwrap());
            },
            Cause::ForeignSignature,
        ),
        (
            "bytes in the middle",
            |disks| put(&DevicePath::at(&disks.members[1].path), SIZE - 4096, b"data"),
            Cause::NotBlank,
        ),
    ];
    for (what, spoil, cause) in spoil {
        let disks = Disks::new();
        spoil(&disks);
        tool::run("sync", &[]).unwrap();
        let before = disks.bytes();
        let failure = disks.lvm().attach(&name(), STRIPED, &disks.members, &disks.claims()).unwrap_err();
        assert_eq!(failure.cause, cause, "{what}: {failure}");
        tool::run("sync", &[]).unwrap();
        assert!(disks.bytes() == before, "{what}: the disks were written to");
    }
}
