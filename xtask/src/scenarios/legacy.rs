//! The shell recipe: what it left must open here, and what is made here must open with its commands.

use anyhow::{Result, ensure};

use super::guest::{PASSWORD, Volume};
use crate::vm::Rig;

/// The plaintext of the recipe's object; `echo` in `provision.sh` adds the newline which the recipe's shell drops.
const CLEARTEXT: &str = "correct horse battery staple";

/// The recipe's file; it lay wherever the instance's user data ran.
const FILE: &str = "/srv/rig/secretfs";

fn volume() -> Volume {
    Volume {
        lifecycle: "persistent".into(),
        backing: format!(r#"{{ file = "{FILE}", size = "128MiB" }}"#),
        object: PASSWORD.into(),
        ..Volume::scratch()
    }
}

pub(super) fn made_by_the_recipe(rig: &mut Rig) -> Result<()> {
    // The recipe's own commands, of its 2 GB only a part; the key is what its `kms decrypt` left in the variable.
    rig.vm.ok(&format!(
        "mkdir -p /srv/rig && cd /srv/rig
         dd of=secretfs bs=1M count=0 seek=128 2>&1
         chmod 600 secretfs
         loop=$(losetup --find)
         losetup \"$loop\" secretfs
         LuksClearTextKey='{CLEARTEXT}'
         echo \"$LuksClearTextKey\" | cryptsetup -y luksFormat \"$loop\"
         echo \"$LuksClearTextKey\" | cryptsetup luksOpen \"$loop\" secretfs
         dd if=/dev/zero of=/dev/mapper/secretfs bs=1M 2>&1 || true
         mke2fs -j -O dir_index /dev/mapper/secretfs 2>&1
         mkdir -p /mnt/secretfs
         mount /dev/mapper/secretfs /mnt/secretfs
         echo 'written by the recipe' > /mnt/secretfs/file
         umount /mnt/secretfs
         cryptsetup luksClose secretfs
         losetup --detach \"$loop\""
    ))?;
    let header = "cryptsetup luksDump /srv/rig/secretfs | grep --max-count=1 UUID:";
    let before = rig.vm.ok(header)?;

    // `mke2fs -j` makes an ext3 file system, which the kernel's ext4 driver serves.
    let volume = volume();
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@scratch")?;
    volume.check_up(rig)?;
    rig.vm.ok("grep 'written by the recipe' /mnt/secretfs/file")?;
    check_memory(rig)?;
    rig.vm.ok("systemctl stop secretfs@scratch")?;
    volume.check_gone(rig)?;
    ensure!(rig.vm.ok(header)? == before, "the recipe's LUKS header was replaced");
    let journal = rig.journal()?;
    ensure!(!journal.contains(CLEARTEXT), "the key stands in the journal");
    Ok(())
}

/// The daemon that holds the volume holds no key any more: not one page of it has the text.
fn check_memory(rig: &Rig) -> Result<()> {
    let found = |text: &str| {
        rig.vm.ok(&format!(
            "pid=$(systemctl show --value --property MainPID secretfs@scratch)
             while IFS='- ' read -r start end access _; do
                 [[ $access == r* ]] || continue
                 dd if=/proc/$pid/mem bs=4096 skip=$((0x$start / 4096)) count=$(((0x$end - 0x$start) / 4096)) status=none
             done < <(grep -v -e vvar -e vsyscall /proc/$pid/maps) | grep --text --count '{text}' || true"
        ))
    };
    ensure!(found("/mnt/secretfs")?.trim() != "0", "the daemon's memory was not read");
    ensure!(found(CLEARTEXT)?.trim() == "0", "the key is still in the daemon's memory");
    Ok(())
}

pub(super) fn opened_by_cryptsetup(rig: &mut Rig) -> Result<()> {
    rig.vm.ok("mkdir -p /srv/rig")?;
    rig.configure(&[&volume()])?;
    rig.vm.ok("systemctl start secretfs@scratch")?;
    rig.vm.ok("echo 'written on secretfs' > /mnt/secretfs/file")?;
    rig.vm.ok("systemctl stop secretfs@scratch")?;
    rig.vm.ok(&format!(
        "echo '{CLEARTEXT}' | cryptsetup luksOpen {FILE} rig-by-hand
         mount /dev/mapper/rig-by-hand /mnt/secretfs
         grep 'written on secretfs' /mnt/secretfs/file
         umount /mnt/secretfs
         cryptsetup luksClose rig-by-hand"
    ))?;
    Ok(())
}
