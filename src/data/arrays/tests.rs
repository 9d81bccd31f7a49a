//! Files on disk, read as a run reads them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use hlo::PrimitiveType;
use npyz::WriterBuilder;
use proptest::prelude::*;
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

use super::*;

/// An array of numpy's, as npyz writes it.
fn npy<T: npyz::AutoSerialize + Copy>(shape: &[u64], values: &[T]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(shape).writer(&mut bytes).begin_nd().unwrap();
    writer.extend(values.iter().copied()).unwrap();
    writer.finish().unwrap();
    bytes
}

fn npz(method: CompressionMethod, arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        let options = SimpleFileOptions::default().compression_method(method);
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn safetensors(arrays: &[(&str, safetensors::Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views: BTreeMap<_, _> = arrays
        .iter()
        .map(|&(name, dtype, shape, bytes)| {
            (name.to_owned(), safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap())
        })
        .collect();
    safetensors::serialize(views, None).unwrap()
}

fn field(name: &str, primitive: PrimitiveType, shape: &[usize]) -> Field {
    Field { name: name.to_owned(), dtype: Dtype::from_primitive(primitive).unwrap(), shape: shape.to_vec() }
}

/// Images of two pixels and labels; of example `n` they are `[n, n + 0.5]` and `n`.
fn fields() -> [Field; 2] {
    [field("batch['image']", PrimitiveType::F32, &[2]), field("batch['label']", PrimitiveType::S32, &[])]
}

fn images(range: std::ops::Range<u64>) -> Vec<u8> {
    let values: Vec<f32> = range.clone().flat_map(|n| [n as f32, n as f32 + 0.5]).collect();
    npy(&[range.end - range.start, 2], &values)
}

fn labels(range: std::ops::Range<u64>) -> Vec<u8> {
    npy(&[range.end - range.start], &range.map(|n| n as i64).collect::<Vec<_>>())
}

fn both(range: std::ops::Range<u64>) -> Vec<u8> {
    let arrays = [("image", images(range.clone())), ("label", labels(range))];
    npz(CompressionMethod::Stored, &arrays)
}

/// The example of a batch that has one.
fn decode(target: &[Vec<u8>]) -> (f32, f32, i32) {
    let image: Vec<f32> = target[0].as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
    (image[0], image[1], i32::from_le_bytes(*target[1].first_chunk().unwrap()))
}

fn numbers(take: impl Fn(usize, &mut [Vec<u8>]), count: usize) -> Vec<i32> {
    (0..count)
        .map(|n| {
            let mut target = vec![Vec::new(), Vec::new()];
            take(n, &mut target);
            let (first, second, label) = decode(&target);
            assert!(first == label as f32 && second == label as f32 + 0.5, "{first} {second} {label}");
            label
        })
        .collect()
}

/// Numbers of the examples of an epoch, and of those held out.
fn read(examples: &Examples, epoch: usize) -> (Vec<i32>, Vec<i32>) {
    let training = examples.training_len();
    let at = |n: usize| (epoch * training + n) as u128;
    (
        numbers(|n, target| examples.training(at(n), target), training),
        numbers(|n, target| examples.held_out(n, target), examples.held_out_len()),
    )
}

fn open(at: &Path, files: &[&str]) -> Result<Examples, DataError> {
    let paths: Vec<_> = files.iter().map(|f| at.join(f)).collect();
    Examples::open(&paths, &fields(), 3, 1)
}

fn workplace(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// Expects every example of `0..count` once, in training or held out.
fn check(at: &Path, files: &[&str], count: i32) {
    let examples = open(at, files).unwrap_or_else(|e| panic!("{files:?}: {e}"));
    let (mut training, held_out) = read(&examples, 0);
    assert_ne!(training, read(&examples, 1).0, "{files:?}: every epoch has its own order");
    training.extend(&held_out);
    training.sort_unstable();
    assert_eq!(training, (0..count).collect::<Vec<_>>(), "{files:?}");
}

#[test]
fn every_format_gives_the_same_examples() {
    let long = 20_000;
    let image_bytes: Vec<u8> = (0..40).flat_map(|n| [n as f32, n as f32 + 0.5]).flat_map(f32::to_le_bytes).collect();
    let label_bytes: Vec<u8> = (0..40u8).collect();
    let arrays = [("label", labels(0..40)), ("id", labels(0..3)), ("batch.image", images(0..40))];
    let at = workplace(&[
        ("a.npz", npz(CompressionMethod::Stored, &arrays)),
        ("packed.npz", npz(CompressionMethod::Deflated, &arrays)),
        ("parts/0.npz", both(0..11)),
        ("parts/1.npz", both(11..12)),
        ("parts/2.npz", both(12..40)),
        ("parts/notes.txt", b"no arrays".to_vec()),
        ("arrays/image.npy", images(0..40)),
        ("arrays/label.npy", labels(0..40)),
        ("numbered/image-00.npy", images(0..30)),
        ("numbered/image-01.npy", images(30..40)),
        ("numbered/label_0.npy", labels(0..20)),
        ("numbered/label_1.npy", labels(20..40)),
        // Long enough to be mapped, not read.
        ("long.npz", npz(CompressionMethod::Stored, &[("image", images(0..long)), ("label", labels(0..long))])),
        (
            "a.safetensors",
            safetensors(&[
                ("batch.image", safetensors::Dtype::F32, &[40, 2], &image_bytes),
                ("label", safetensors::Dtype::U8, &[40], &label_bytes),
            ]),
        ),
    ]);
    for files in [
        &["a.npz"][..],
        &["packed.npz"],
        &["parts"],
        &["parts/0.npz", "parts/1.npz", "parts/2.npz"],
        &["arrays"],
        &["arrays/label.npy", "arrays/image.npy"],
        &["numbered"],
        &["a.safetensors"],
    ] {
        check(at.path(), files, 40);
    }
    check(at.path(), &["long.npz"], long as i32);
    // The order is the same whatever the format, and another for another seed.
    let order = |file: &str| read(&open(at.path(), &[file]).unwrap(), 0);
    assert_eq!(order("a.npz"), order("a.safetensors"));
    let other = Examples::open(&[at.path().join("a.npz")], &fields(), 4, 1).unwrap();
    assert_ne!(order("a.npz").0, read(&other, 0).0);
}

#[test]
fn one_input_takes_any_single_array() {
    let at =
        workplace(&[("x.npy", labels(0..20)), ("y.npz", npz(CompressionMethod::Stored, &[("arr_0", labels(20..30))]))]);
    let paths = [at.path().join("x.npy"), at.path().join("y.npz")];
    let examples = Examples::open(&paths, &[field("batch", PrimitiveType::S32, &[])], 0, 1).unwrap();
    assert_eq!((examples.len(), examples.files(), examples.held_out_len()), (30, 2, 3));
}

#[test]
fn neighbours_are_held_out_together() {
    let at = workplace(&[("a.npz", both(0..1000))]);
    let examples = open(at.path(), &["a.npz"]).unwrap();
    let (_, held_out) = read(&examples, 0);
    // 62 blocks of 16: every tenth.
    let expected: Vec<i32> = (0..6).flat_map(|n| (n * 160 + 144)..(n * 160 + 160)).collect();
    assert_eq!(held_out, expected);
}

#[test]
fn what_is_wrong_is_said_with_file_array_and_numbers() {
    let stored = |arrays: &[(&str, Vec<u8>)]| npz(CompressionMethod::Stored, arrays);
    let good = both(0..40);
    let mut flipped = good.clone();
    flipped[300] ^= 1;
    let packed = npz(CompressionMethod::Deflated, &[("image", images(0..40)), ("label", labels(0..40))]);
    let mut broken = packed.clone();
    broken[120] ^= 0x55;
    let mut fortran = images(0..40);
    let at = fortran.windows(5).position(|w| w == b"False").unwrap();
    fortran[at..at + 5].copy_from_slice(b"True ");
    let short = images(0..40);
    let tensors = safetensors(&[("label", safetensors::Dtype::I64, &[2], &[0; 16])]);
    let doubles = npy(&[40, 2], &[0.5f64; 80]);
    let huge = npy(&[40], &[1i64 << 40; 40]);
    let nan = npy(&[40], &[0.5f32; 40]);
    let label = ("label", labels(0..40));
    let image = ("image", images(0..40));
    for (name, bytes, parts) in [
        ("x.npz", good[..good.len() - 60].to_vec(), &["x.npz", "truncated"][..]),
        ("x.npz", b"PK\x03\x04".to_vec(), &["x.npz", "no .npz file"]),
        ("x.npz", Vec::new(), &["x.npz", "no .npz file"]),
        ("x.npz", flipped, &["x.npz, array image", "damaged"]),
        ("x.npz", broken, &["x.npz, array image", "damaged"]),
        ("x.npz", stored(std::slice::from_ref(&image)), &["x.npz", "no array for the input batch['label']", "image"]),
        ("x.npz", stored(&[]), &["x.npz", "there are: none"]),
        (
            "x.npz",
            stored(&[("arr_0", images(0..40)), ("arr_1", labels(0..40))]),
            &["batch['image']", "there are: arr_0, arr_1"],
        ),
        (
            "x.npz",
            stored(&[image.clone(), ("batch.image", images(0..40)), label.clone()]),
            &["image or batch.image", "full name"],
        ),
        ("x.npz", stored(&[image.clone(), ("label", labels(0..39))]), &["array label", "39 examples", "image has 40"]),
        (
            "x.npz",
            stored(&[("image", npy(&[40, 3], &[0f32; 120])), label.clone()]),
            &["array image", "float32 [3]", "batch['image'] takes examples that are float32 [2]"],
        ),
        ("x.npz", stored(&[("image", npy(&[], &[0f32])), label.clone()]), &["a single float32", "count examples"]),
        ("x.npz", stored(&[image.clone(), ("label", huge)]), &["array label", "example 0", "int64", "int32"]),
        ("x.npz", stored(&[image.clone(), ("label", nan)]), &["float32", "convert it to int32"]),
        ("x.npz", stored(&[("image", fortran), label.clone()]), &["array image", "np.ascontiguousarray"]),
        ("x.npz", stored(&[("image", short[..short.len() - 4].to_vec()), label.clone()]), &["316 bytes", "has 320"]),
        ("x.npz", both(0..1), &["1 examples", "0 of them to train on", "takes 1"]),
        ("x.npz", both(0..0), &["0 examples", "give more"]),
        ("image.npy", images(0..40), &["40 examples for the input batch['image'], and 0 for batch['label']"]),
        ("other.npy", images(0..40), &["other.npy", "batch['image'], batch['label']"]),
        ("image.npy", short[..60].to_vec(), &["image.npy", "truncated"]),
        ("x.safetensors", tensors[..tensors.len() - 1].to_vec(), &["x.safetensors", "15 bytes", "says 16"]),
        ("x.safetensors", tensors[..20].to_vec(), &["x.safetensors", "truncated"]),
        ("x.safetensors", b"\x02\0\0\0\0\0\0\0[]".to_vec(), &["x.safetensors", "no safetensors file"]),
        ("x.safetensors", tensors, &["x.safetensors", "batch['image']"]),
        ("notes.txt", b"text".to_vec(), &["notes.txt", ".npz, .npy and .safetensors"]),
    ] {
        let at = workplace(&[(name, bytes)]);
        let error = open(at.path(), &[name]).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }
    // JAX rounds numpy's default type too.
    let at = workplace(&[("x.npz", stored(&[("image", doubles), label]))]);
    open(at.path(), &["x.npz"]).unwrap();
    let at = workplace(&[("image.npy", images(0..40)), ("x.npz", both(0..40))]);
    let error = open(at.path(), &["image.npy", "x.npz"]).unwrap_err().to_string();
    assert!(error.contains("files of one kind"), "{error}");
    fs::create_dir(at.path().join("none")).unwrap();
    let error = open(at.path(), &["none"]).unwrap_err().to_string();
    assert!(error.contains("files with arrays"), "{error}");
}

#[test]
fn examples_without_elements_are_none() {
    // However many of them a header promises, they take no room in the file.
    let folder = workplace(&[("x.npy", npy::<f32>(&[999_999_999_999, 0], &[]))]);
    let fields = [field("x", PrimitiveType::F32, &[0])];
    let error = Examples::open(&[folder.path().join("x.npy")], &fields, 0, 1).unwrap_err().to_string();
    assert!(error.contains("float32 [0]: they have no elements"), "{error}");
}

#[test]
fn a_step_needs_its_examples() {
    let at = workplace(&[("x.npz", both(0..40))]);
    let paths = [at.path().join("x.npz")];
    assert!(Examples::open(&paths, &fields(), 0, 36).is_ok());
    let error = Examples::open(&paths, &fields(), 0, 37).unwrap_err().to_string();
    assert!(error.contains("40 examples, 36 of them to train on and 4 held out; a step takes 37"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Damage anywhere is an error or leaves elements to read; nothing else.
    #[test]
    fn damaged_files_do_no_harm(format in 0usize..3, at: prop::sample::Index, bit in 0u8..8, cut: prop::sample::Index) {
        let label_bytes = [0; 40];
        let (name, mut bytes) = match format {
            0 => ("x.npz", both(0..40)),
            1 => ("x.npz", npz(CompressionMethod::Deflated, &[("image", images(0..40)), ("label", labels(0..40))])),
            _ => ("x.safetensors", safetensors(&[
                ("image", safetensors::Dtype::F32, &[40, 2], &[0; 320]),
                ("label", safetensors::Dtype::U8, &[40], &label_bytes),
            ])),
        };
        let len = bytes.len();
        bytes[at.index(len)] ^= 1 << bit;
        let folder = workplace(&[(name, bytes.clone())]);
        if let Ok(examples) = open(folder.path(), &[name]) {
            let mut target = vec![Vec::new(), Vec::new()];
            examples.training(12, &mut target);
            prop_assert_eq!((target[0].len(), target[1].len()), (8, 4));
        }
        bytes.truncate(cut.index(len));
        let folder = workplace(&[(name, bytes)]);
        prop_assert!(open(folder.path(), &[name]).is_err());
    }
}
