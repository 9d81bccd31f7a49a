use std::os::unix::fs::PermissionsExt;

use super::*;

/// Keys of programs named by a number.
fn key(program: u8) -> Key {
    Target::for_tests().key(&[program], b"")
}

fn cache(limit: u64) -> (tempfile::TempDir, CompileCache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = CompileCache::open(&folder.path().join("a").join("b"), limit).unwrap();
    (folder, cache)
}

/// Says that an entry was used so many seconds ago.
fn age(cache: &CompileCache, program: u8, seconds: u64) {
    let file = File::open(cache.path(&key(program))).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

#[test]
fn what_was_put_comes_back() {
    let (_folder, cache) = cache(1 << 20);
    assert_eq!(cache.get(&key(1)), None);
    cache.put(&key(1), b"one");
    cache.put(&key(2), b"");
    assert_eq!(cache.get(&key(1)).as_deref(), Some(&b"one"[..]));
    assert_eq!(cache.get(&key(2)).as_deref(), Some(&b""[..]));
    cache.put(&key(1), b"another");
    assert_eq!(cache.get(&key(1)).as_deref(), Some(&b"another"[..]));
    assert_eq!(cache.entries().unwrap().len(), 2);
    assert_eq!(cache.clear().unwrap(), (2, 2 * HEADER as u64 + 7));
    assert_eq!(cache.get(&key(1)), None);
    let mode = fs::metadata(cache.folder()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_damaged_entry_is_removed() {
    let (_folder, cache) = cache(1 << 20);
    let path = cache.path(&key(1));
    cache.put(&key(1), b"executable");
    let sound = fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..sound.len())
        .map(|at| {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            bytes
        })
        .collect();
    damaged.extend((0..sound.len()).map(|length| sound[..length].to_vec()));
    damaged.push([sound.as_slice(), b"x"].concat());
    // An entry under the name of another.
    cache.put(&key(2), b"executable");
    damaged.push(fs::read(cache.path(&key(2))).unwrap());
    for bytes in damaged {
        fs::write(&path, &bytes).unwrap();
        assert_eq!(cache.get(&key(1)), None, "{bytes:?}");
        assert!(!path.exists());
    }
    fs::write(&path, sound).unwrap();
    assert!(cache.get(&key(1)).is_some());
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    let size = HEADER as u64 + 100;
    let (_folder, cache) = cache(3 * size);
    for program in 1..=3 {
        cache.put(&key(program), &[program; 100]);
        age(&cache, program, 100 - u64::from(program));
    }
    // The oldest is used again, so the second is the oldest now.
    assert!(cache.get(&key(1)).is_some());
    cache.put(&key(4), &[4; 100]);
    let left: Vec<_> = (1..=4).filter(|&program| cache.path(&key(program)).exists()).collect();
    assert_eq!(left, [1, 3, 4]);
    // What would take all the room and more is not kept, and costs nothing else its place.
    cache.put(&key(5), &[5; 1000]);
    assert_eq!(cache.entries().unwrap().len(), 3);
    assert!(cache.entries().unwrap().iter().map(|entry| entry.size).sum::<u64>() <= 3 * size);
}

#[test]
fn other_files_are_left_alone_and_leftovers_are_not() {
    let (_folder, cache) = cache(HEADER as u64 + 10);
    let write = |name: &str, old: bool| {
        let path = cache.folder().join(name);
        fs::write(&path, [0; 100]).unwrap();
        if old {
            File::open(&path).unwrap().set_modified(SystemTime::now() - 2 * ABANDONED).unwrap();
        }
        path
    };
    let thesis = write("thesis.tex", true);
    let (left, growing) = (write(".entropic-a.tmp", true), write(".entropic-b.tmp", false));
    cache.put(&key(1), b"one");
    assert!(thesis.exists() && !left.exists() && growing.exists());
    assert!(cache.get(&key(1)).is_some());
    cache.clear().unwrap();
    assert!(thesis.exists());
}

#[test]
fn folders_that_others_may_write_to_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (mode, sound) in [(0o700, true), (0o755, true), (0o770, false), (0o707, false), (0o777, false)] {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        match CompileCache::open(folder.path(), 1) {
            Ok(_) => assert!(sound, "{mode:o}"),
            Err(error) => {
                let error = error.to_string();
                assert!(!sound && error.contains("chmod go-w") && error.contains(CACHE_DIR), "{mode:o}: {error}");
            }
        }
    }
    let file = folder.path().join("file");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(&file, "").unwrap();
    assert!(matches!(CompileCache::open(&file, 1), Err(CacheError::Folder { .. })));
}

#[test]
fn sizes_are_read() {
    for (text, expected) in [
        ("0", Some(0)),
        ("123", Some(123)),
        ("4k", Some(4096)),
        ("500M", Some(500 << 20)),
        ("2GiB", Some(2 << 30)),
        (" 1 gb ", Some(1 << 30)),
        ("99999999999999999999", None),
        ("99999999999G", None),
        ("much", None),
        ("-1", None),
        ("1.5G", None),
    ] {
        assert_eq!(parse_size(text), expected, "{text}");
    }
}
