//! What control costs on the device: the controlled step against the plain one, both in a bare execute loop.
//!
//! `cargo bench --bench control_cost [-- BUNDLE...]`; `models/mlp` and `models/gpt-nano` if none is given.

mod support;

use std::path::Path;

use anyhow::Result;
use entropic::bundle::Bundle;
use entropic::model::Model;
use passes::Policy;
use support::Bare;

fn main() -> Result<()> {
    let mut scaled = Policy::default();
    scaled.scale.tensors.insert("*".to_owned(), 1.0);
    for path in support::bundles(&["mlp", "gpt-nano"]) {
        for (name, policy) in
            [("monitor", Policy::monitor()), ("default", Policy::default()), ("scaled", scaled.clone())]
        {
            compare(&path, name, &policy)?;
        }
    }
    Ok(())
}

fn compare(path: &Path, name: &str, policy: &Policy) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let plain = Bundle::open(path)?;
    let controlled = Model::open(path)?.inject(policy, entropic::target::Platform::Cpu)?;
    let plain_setup = support::setup(plain.clone(), &folder.path().join("plain"))?;
    let setup = support::setup(controlled.clone(), &folder.path().join("controlled"))?;
    let mut first = Bare::new(&plain_setup, &plain)?;
    let mut second = Bare::new(&setup, &controlled)?;
    let ratio = support::ratio(|steps| first.run(&plain_setup, steps), |steps| second.run(&setup, steps))?;
    println!("{}, policy {name}: time of the controlled step over that of the plain one: {ratio}", path.display());
    Ok(())
}
