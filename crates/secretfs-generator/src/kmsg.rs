//! Records for the kernel's log, the only log there is when generators run.

/// The longest record: the kernel cuts what a write to `/dev/kmsg` puts in one record (`PRINTKRB_RECORD_MAX` is 1024 in
/// Linux 6, with room for its own prefix), and older kernels refuse more than 992 bytes.
pub const LINE_MAX: usize = 975;

/// How much a line matters, by the numbers of syslog(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Something is refused.
    Error = 3,
    /// Something is likely to be regretted.
    Warning = 4,
}

/// One record as `/dev/kmsg` takes it: its priority, the identifier that journald parses, and `text` as one line.
pub fn record(priority: Priority, pid: u32, text: &str) -> String {
    // The kernel would break or escape a control character; journald shows the rest as it is.
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut record = format!("<{}>secretfs-generator[{pid}]: {line}", priority as u8);
    if record.len() > LINE_MAX {
        let end = record.floor_char_boundary(LINE_MAX - '…'.len_utf8());
        record.truncate(end);
        record.push('…');
    }
    record
}
