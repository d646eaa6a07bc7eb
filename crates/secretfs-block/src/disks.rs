//! Which whole disks there are, from sysfs and udev's database; nothing is opened.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use secretfs_core::claim::DiskFacts;

use crate::device::names_in;

/// What is no disk, though it is a block device: it is made of others, of memory, or has its medium taken out.
const NO_DISKS: [&str; 9] = ["dm-", "fd", "loop", "md", "nbd", "ram", "rbd", "sr", "zram"];

/// sysfs counts in these whatever the device's own sectors are.
const SYSFS_SECTOR: u64 = 512;

/// Looks at every whole disk below `root`, `/` on a real machine.
pub fn enumerate(root: &Path) -> Vec<DiskFacts> {
    let block = root.join("sys/block");
    names_in(&block, |_| true)
        .into_iter()
        .filter(|name| !NO_DISKS.iter().any(|prefix| name.starts_with(prefix)))
        .filter_map(|name| disk(root, &block.join(&name), name))
        .collect()
}

/// Nothing for a path of a multipath device, which the kernel hides, and for a drive without a medium.
fn disk(root: &Path, sysfs: &Path, name: String) -> Option<DiskFacts> {
    let text = |path: &str| fs::read_to_string(sysfs.join(path)).map(|text| clean(&text)).unwrap_or_default();
    let bytes = text("size").parse::<u64>().ok()? * SYSFS_SECTOR;
    if bytes == 0 || text("hidden") == "1" {
        return None;
    }
    let udev = fs::read_to_string(root.join("run/udev/data").join(format!("b{}", text("dev")))).unwrap_or_default();
    let properties: BTreeMap<&str, &str> =
        udev.lines().filter_map(|line| line.strip_prefix("E:")?.split_once('=')).collect();
    let property = |name: &str| properties.get(name).map(|text| clean(text)).unwrap_or_default();
    let first = |texts: [String; 4]| texts.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    // udev's own forms have underscores for blanks; the kernel's are what `lsblk` shows.
    let model = first([text("device/model"), clean(&decode(&property("ID_MODEL_ENC"))), String::new(), String::new()]);
    let serial =
        first([text("serial"), text("device/serial"), property("ID_SERIAL_SHORT"), property("ID_SCSI_SERIAL")]);
    let mut wwns = Vec::new();
    let names = [property("ID_WWN_WITH_EXTENSION"), property("ID_WWN"), text("wwid"), text("device/wwid")];
    for wwn in names.into_iter().filter(|wwn| !wwn.is_empty()) {
        if !wwns.contains(&wwn) {
            wwns.push(wwn);
        }
    }
    let mut by_id: Vec<String> =
        udev.lines().filter_map(|line| line.strip_prefix("S:disk/by-id/")).map(str::to_owned).collect();
    by_id.sort();
    let settled = udev.lines().any(|line| line.starts_with("I:"));
    Some(DiskFacts { namespace: text("nsid").parse().ok(), name, model, serial, wwns, by_id, bytes, settled })
}

/// Without the blanks and zero bytes that devices pad their names with.
fn clean(text: &str) -> String {
    text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()
}

/// Undoes the `\xNN` of udev's `…_ENC` properties.
fn decode(text: &str) -> String {
    let mut parts = text.split("\\x");
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if byte.is_ascii() => {
                decoded.push(char::from(byte));
                decoded.push_str(&part[2..]);
            }
            _ => {
                decoded.push_str("\\x");
                decoded.push_str(part);
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn machine(files: &[(&str, &str)]) -> Scratch {
        let scratch = Scratch::new();
        for (path, text) in files {
            let path = scratch.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        scratch
    }

    #[test]
    fn disks_of_each_kind() {
        let scratch = machine(&[
            ("sys/block/nvme1n1/size", "1048576\n"),
            ("sys/block/nvme1n1/dev", "259:3\n"),
            ("sys/block/nvme1n1/nsid", "1\n"),
            ("sys/block/nvme1n1/wwid", "nvme.1d0f-766f6c-1\n"),
            ("sys/block/nvme1n1/device/model", "Amazon Elastic Block Store              \n"),
            ("sys/block/nvme1n1/device/serial", "vol0123456789abcdef0\n"),
            (
                "run/udev/data/b259:3",
                "I:1\nS:disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0\nS:disk/by-path/pci-0\nE:ID_MODEL=x\n",
            ),
            ("sys/block/nvme1c0n1/size", "1048576\n"),
            ("sys/block/nvme1c0n1/hidden", "1\n"),
            ("sys/block/sda/size", "8\n"),
            ("sys/block/sda/dev", "8:0\n"),
            ("sys/block/sda/device/wwid", "naa.5000c500a\n"),
            (
                "run/udev/data/b8:0",
                "I:2\nE:ID_MODEL_ENC=Big\\x20Disk\\x20\\x20\nE:ID_SERIAL_SHORT=S1\nE:ID_WWN=0x5000c500a\nE:ID_SERIAL=Big_Disk_S1\n",
            ),
            ("sys/block/vda/size", "16\n"),
            ("sys/block/vda/dev", "254:0\n"),
            ("sys/block/vda/serial", "virtual"),
            ("sys/block/loop0/size", "16\n"),
            ("sys/block/dm-0/size", "16\n"),
            ("sys/block/sr0/size", "16\n"),
            ("sys/block/sdb/size", "0\n"),
        ]);
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let wanted = [
            DiskFacts {
                name: "nvme1n1".to_owned(),
                model: "Amazon Elastic Block Store".to_owned(),
                serial: "vol0123456789abcdef0".to_owned(),
                wwns: texts(&["nvme.1d0f-766f6c-1"]),
                by_id: texts(&["nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0"]),
                namespace: Some(1),
                bytes: 512 << 20,
                settled: true,
            },
            DiskFacts {
                name: "sda".to_owned(),
                model: "Big Disk".to_owned(),
                serial: "S1".to_owned(),
                wwns: texts(&["0x5000c500a", "naa.5000c500a"]),
                bytes: 4096,
                settled: true,
                ..DiskFacts::default()
            },
            DiskFacts { name: "vda".to_owned(), serial: "virtual".to_owned(), bytes: 8192, ..DiskFacts::default() },
        ];
        assert_eq!(enumerate(&scratch.path("")), wanted);
        assert_eq!(enumerate(&scratch.path("nowhere")), []);
    }

    #[test]
    fn encoded_properties() {
        assert_eq!(decode("QEMU\\x20NVMe\\x20Ctrl"), "QEMU NVMe Ctrl");
        assert_eq!(decode("a\\xzz\\x"), "a\\xzz\\x");
    }
}
