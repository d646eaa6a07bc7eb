//! `/proc/swaps`: the swap space in use.

use super::unescape;

/// A line of `/proc/swaps` (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// The device or file, as the kernel calls it: `/dev/dm-0`, whatever name it was given.
    pub path: String,
    /// The number of that device, `MAJOR:MINOR`; none for a file.
    pub devno: Option<String>,
    /// Its size in bytes.
    pub size: u64,
    /// How much of it is taken, in bytes.
    pub used: u64,
    /// What is used first has the highest.
    pub priority: i32,
}

/// Reads the text of `/proc/swaps`; `devno` gives the number of the device at a path. Lines that are not of its form,
/// as the heading, are passed over.
pub fn parse_swaps(text: &str, devno: impl Fn(&str) -> Option<String>) -> Vec<Swap> {
    text.lines().filter_map(|line| parse_swap(line, &devno)).collect()
}

fn parse_swap(line: &str, devno: impl Fn(&str) -> Option<String>) -> Option<Swap> {
    let mut fields = line.split_whitespace();
    let path = unescape(fields.next()?);
    let _kind = fields.next()?;
    let mut kibibytes = || fields.next()?.parse::<u64>().ok()?.checked_mul(1024);
    let (size, used) = (kibibytes()?, kibibytes()?);
    let priority = fields.next()?.parse().ok()?;
    Some(Swap { devno: devno(&path), path, size, used, priority })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_kinds() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/dm-0                               partition\t1048572\t\t12\t\t-2\n\
                    /srv/a\\040b                              file    \t4\t\t0\t\t10\n";
        let devno = |path: &str| (path == "/dev/dm-0").then(|| "253:0".to_owned());
        let device = Swap {
            path: "/dev/dm-0".to_owned(),
            devno: Some("253:0".to_owned()),
            size: 1_073_737_728,
            used: 12_288,
            priority: -2,
        };
        let file = Swap { path: "/srv/a b".to_owned(), devno: None, size: 4096, used: 0, priority: 10 };
        assert_eq!(parse_swaps(text, devno), [device, file]);
    }
}
