//! Compile options, and their bytes as the plugin takes them (a `CompileOptionsProto`).
//!
//! Only a handful of its fields are ever set here, so they are written directly, in ascending order: equal options give
//! equal bytes.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// How to compile a program. The default is one replica and one partition.
#[derive(Debug, Clone, PartialEq)]
pub struct CompileOptions {
    /// Copies of the program that run on different data.
    pub num_replicas: usize,
    /// Parts that the program is split into.
    pub num_partitions: usize,
    /// Whether the program is one for all partitions, split by its sharding annotations.
    pub use_spmd_partitioning: bool,
    /// Whether Shardy splits it. Needed for programs with `xla.sdy` annotations, wrong for those with only the
    /// older ones.
    pub use_shardy_partitioner: bool,
    /// For each output in turn whether the partitioner chooses how to split it where the program does not say; where it may
    /// not, every partition has all of it. Empty: it may for none. A single value is for all outputs.
    pub allow_spmd_sharding_propagation_to_output: Vec<bool>,
    /// The same for parameters.
    pub allow_spmd_sharding_propagation_to_parameters: Vec<bool>,
    /// The devices to run on; if `None`, the plugin chooses.
    pub device_assignment: Option<DeviceAssignment>,
    /// Compiler flags by name, without the leading dashes, as in `xla_cpu_enable_fast_math`.
    pub env_option_overrides: BTreeMap<String, OptionValue>,
}

impl Default for CompileOptions {
    fn default() -> Self {
        Self {
            num_replicas: 1,
            num_partitions: 1,
            use_spmd_partitioning: false,
            use_shardy_partitioner: false,
            allow_spmd_sharding_propagation_to_output: Vec::new(),
            allow_spmd_sharding_propagation_to_parameters: Vec::new(),
            device_assignment: None,
            env_option_overrides: BTreeMap::new(),
        }
    }
}

/// Which device runs which replica of which partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceAssignment {
    num_replicas: usize,
    num_partitions: usize,
    device_ids: Vec<i32>,
}

impl DeviceAssignment {
    /// `device_ids` lists, for each replica in turn, the [ids](crate::Device::id) of the devices of all its partitions.
    ///
    /// # Errors
    ///
    /// There must be one id per replica and partition, and at least one.
    pub fn new(num_replicas: usize, num_partitions: usize, device_ids: Vec<i32>) -> Result<Self> {
        if device_ids.is_empty() || num_replicas.checked_mul(num_partitions) != Some(device_ids.len()) {
            return Err(Error::Argument(format!(
                "{num_replicas} replica(s) of {num_partitions} partition(s) need as many devices, but {} were given",
                device_ids.len()
            )));
        }
        Ok(Self { num_replicas, num_partitions, device_ids })
    }
}

/// The value of a compiler flag.
#[derive(Debug, Clone, PartialEq)]
pub enum OptionValue {
    /// Text, or any flag in its text form.
    String(String),
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number.
    Float(f64),
}

impl CompileOptions {
    /// The bytes that a plugin is given. Equal options give equal bytes.
    ///
    /// # Errors
    ///
    /// Where the options contradict each other.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let replicas = count("num_replicas", self.num_replicas)?;
        let partitions = count("num_partitions", self.num_partitions)?;
        let mut build = Message::default();
        // -1 says "not set"; 0, the value of an absent field, would mean device 0.
        build.int(1, -1);
        build.int(4, replicas);
        build.int(5, partitions);
        build.bool(6, self.use_spmd_partitioning);
        if let Some(assignment) = &self.device_assignment {
            if (assignment.num_replicas, assignment.num_partitions) != (self.num_replicas, self.num_partitions) {
                return Err(Error::Argument(format!(
                    "the device assignment is for {} replica(s) of {} partition(s), the options are for {} of {}",
                    assignment.num_replicas, assignment.num_partitions, self.num_replicas, self.num_partitions
                )));
            }
            build.message(9, &assignment.to_message(replicas, partitions));
        }
        // An absent field does not stand for the compiler's own defaults: nothing spreads (12 and 18), and there is one
        // process (23).
        build.flags(12, &self.allow_spmd_sharding_propagation_to_output);
        build.flags(18, &self.allow_spmd_sharding_propagation_to_parameters);
        build.bool(19, self.use_shardy_partitioner);
        build.int(23, 1);

        let mut options = Message::default();
        options.message(3, &build);
        for (name, value) in &self.env_option_overrides {
            let mut field = Message::default();
            match value {
                OptionValue::String(text) => field.bytes(1, text.as_bytes()),
                OptionValue::Bool(flag) => field.int(2, i64::from(*flag)),
                OptionValue::Int(int) => field.int(3, *int),
                OptionValue::Float(float) => field.double(4, *float),
            }
            let mut entry = Message::default();
            entry.bytes(1, name.as_bytes());
            entry.message(2, &field);
            options.message(7, &entry);
        }
        Ok(options.0)
    }
}

impl DeviceAssignment {
    fn to_message(&self, replicas: i64, partitions: i64) -> Message {
        let mut message = Message::default();
        message.int(1, replicas);
        message.int(2, partitions);
        for partition in 0..self.num_partitions {
            let mut ids = Message::default();
            for &id in self.device_ids.iter().skip(partition).step_by(self.num_partitions) {
                ids.varint(i64::from(id).cast_unsigned());
            }
            let mut device = Message::default();
            device.message(1, &ids);
            message.message(3, &device);
        }
        message
    }
}

fn count(name: &str, value: usize) -> Result<i64> {
    i32::try_from(value)
        .ok()
        .filter(|&value| value > 0)
        .map(i64::from)
        .ok_or_else(|| Error::Argument(format!("{name} is {value}; it must be between 1 and {}", i32::MAX)))
}

/// The bytes of a protocol buffer message under construction. Fields are written also where they hold the default.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn int(&mut self, field: u64, value: i64) {
        self.varint(field << 3);
        self.varint(value.cast_unsigned());
    }

    fn bool(&mut self, field: u64, value: bool) {
        self.int(field, i64::from(value));
    }

    fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    /// A list of truth values, `[false]` where there are none.
    fn flags(&mut self, field: u64, flags: &[bool]) {
        let flags: Vec<u8> = flags.iter().map(|&flag| u8::from(flag)).collect();
        self.bytes(field, if flags.is_empty() { &[0] } else { &flags });
    }

    fn message(&mut self, field: u64, value: &Self) {
        self.bytes(field, &value.0);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn default_options() {
        let unset = "08ffffffffffffffffff01";
        assert_eq!(
            hex(&CompileOptions::default().to_bytes().unwrap()),
            format!("1a1e{unset}20012801300062010092010100980100b80101")
        );
    }

    #[test]
    fn overrides_are_a_map_in_name_order() {
        let overrides = [
            ("s", OptionValue::String("x".to_owned()), "3a080a0173120 30a0178"),
            ("b", OptionValue::Bool(false), "3a070a016212021000"),
            ("i", OptionValue::Int(300), "3a080a0169120318ac02"),
            ("f", OptionValue::Float(1.0), "3a0e0a0166120921000000000000f03f"),
        ];
        let options = CompileOptions {
            env_option_overrides: overrides
                .iter()
                .map(|(name, value, _)| ((*name).to_owned(), value.clone()))
                .collect(),
            ..CompileOptions::default()
        };
        let bytes = hex(&options.to_bytes().unwrap());
        let tail: String = [1, 3, 2, 0].iter().map(|&index: &usize| overrides[index].2.replace(' ', "")).collect();
        assert!(bytes.ends_with(&tail), "{bytes} does not end with {tail}");
    }

    #[test]
    fn what_may_spread_is_listed() {
        let options = CompileOptions {
            allow_spmd_sharding_propagation_to_output: vec![true, false],
            allow_spmd_sharding_propagation_to_parameters: vec![true],
            ..CompileOptions::default()
        };
        assert!(hex(&options.to_bytes().unwrap()).contains("62020100920101019801"));
    }

    #[test]
    fn device_assignment_is_grouped_by_partition() {
        let options = CompileOptions {
            num_replicas: 2,
            num_partitions: 3,
            device_assignment: Some(DeviceAssignment::new(2, 3, vec![0, 1, 2, 3, 4, 5]).unwrap()),
            ..CompileOptions::default()
        };
        let bytes = hex(&options.to_bytes().unwrap());
        // Field 9: two replicas (1), three partitions (2), and per partition the ids of its replicas (3).
        assert!(
            bytes.contains("4a1608021003 1a040a020003 1a040a020104 1a040a020205".replace(' ', "").as_str()),
            "{bytes}"
        );
    }

    #[test]
    fn refuses_contradictions() {
        let check = |options: CompileOptions, part: &str| {
            let error = options.to_bytes().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        check(CompileOptions { num_replicas: 0, ..Default::default() }, "num_replicas is 0");
        check(CompileOptions { num_partitions: usize::MAX, ..Default::default() }, "num_partitions is");
        let one = DeviceAssignment::new(1, 1, vec![0]).unwrap();
        check(
            CompileOptions { num_replicas: 2, device_assignment: Some(one), ..Default::default() },
            "the options are for 2 of 1",
        );
        for (replicas, partitions, ids) in [(2, 1, vec![0]), (0, 0, vec![]), (usize::MAX, 2, vec![0])] {
            assert!(DeviceAssignment::new(replicas, partitions, ids).is_err());
        }
    }
}
