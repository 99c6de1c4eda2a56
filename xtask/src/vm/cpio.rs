//! Archives in cpio's "new ASCII" format, which the kernel unpacks as its first root (initramfs).
//!
//! Invariant: every name and every file begins at a multiple of four bytes.

/// An archive in the making.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

impl Archive {
    /// A directory; its parent comes before it.
    pub(super) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, &[]);
    }

    /// A file that can be run.
    pub(super) fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, PROGRAM, content);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a first root of less than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a short name");
        // Inode, mode, owner, group, links, time, size, four numbers of devices, size of the name, no checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_headers_names_and_content_at_multiples_of_four() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("init", b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let at = |text: &[u8]| bytes.windows(text.len()).position(|window| window == text).expect("is in it");
        assert_eq!(&bytes[..22], b"070701".iter().chain(b"00000001000041ed").copied().collect::<Vec<_>>());
        for text in [&b"hello"[..], b"0707010000000200"] {
            assert_eq!(at(text) % 4, 0);
        }
        assert_eq!(at(b"init\0") % 4, 2, "after a header of 110 bytes");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }
}
