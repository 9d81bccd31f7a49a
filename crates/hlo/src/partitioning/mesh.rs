//! The meshes in a module's header, as Shardy writes them: `{mesh = #sdy.mesh<["data"=4, "model"=2]>}`.

use thiserror::Error;

/// As many devices are believed at most.
const MOST_DEVICES: usize = 1 << 20;

/// A mesh: devices along axes with names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    name: String,
    axes: Vec<(String, usize)>,
    /// Whether devices are in another order than by number.
    reordered: bool,
}

/// Why meshes cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`name = #sdy.mesh<[\"axis\"=size, …]>` was expected in {text:?}")]
pub struct MeshError {
    /// What was found.
    pub text: String,
}

impl Mesh {
    /// The mesh of most devices in the value of the attribute `xla.sdy.meshes`; `None` where there is none.
    ///
    /// # Errors
    ///
    /// Where the text is no list of meshes.
    pub fn largest(text: &str) -> Result<Option<Self>, MeshError> {
        let unread = || MeshError { text: text.to_owned() };
        let inner = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or_else(unread)?;
        let mut largest: Option<Self> = None;
        let mut rest = inner.trim();
        while !rest.is_empty() {
            let (name, after) = rest.split_once("= #sdy.mesh<").ok_or_else(unread)?;
            let (body, after) = after.split_once('>').ok_or_else(unread)?;
            let reordered = body.contains("device_ids");
            let mesh = Self { name: name.trim().to_owned(), axes: axes(body).ok_or_else(unread)?, reordered };
            if largest.as_ref().is_none_or(|known| known.size() < mesh.size()) {
                largest = Some(mesh);
            }
            rest = after.trim_start().strip_prefix(',').unwrap_or(after).trim_start();
        }
        Ok(largest)
    }

    /// How a sharding names it: `@mesh`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("@{}", self.name)
    }

    /// Its axes: name and number of devices.
    #[must_use]
    pub fn axes(&self) -> &[(String, usize)] {
        &self.axes
    }

    /// Devices in it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.axes.iter().map(|(_, size)| size).product()
    }

    /// Where a device is along the axis of that name; `None` where there is no such axis, or the mesh lists its devices in an
    /// order of its own.
    #[must_use]
    pub fn along(&self, axis: &str, device: usize) -> Option<usize> {
        let at = self.axes.iter().position(|(name, _)| name == axis).filter(|_| !self.reordered)?;
        let (_, size) = self.axes.get(at)?;
        let inner: usize = self.axes.iter().skip(at + 1).map(|(_, size)| size).product();
        device.checked_div(inner)?.checked_rem(*size)
    }

    /// The sharding of an array of `rank` dimensions that every device has all of, as it follows `#sdy.sharding`.
    #[must_use]
    pub fn replicated(&self, rank: usize) -> String {
        format!("<{}, [{}]>", self.reference(), vec!["{}"; rank].join(", "))
    }
}

/// `["data"=4, "model"=2]`, perhaps with `device_ids=[…]` behind it.
fn axes(body: &str) -> Option<Vec<(String, usize)>> {
    let (list, _) = body.trim().strip_prefix('[')?.split_once(']')?;
    let mut axes = Vec::new();
    let mut devices = 1usize;
    for axis in list.split(',').map(str::trim).filter(|axis| !axis.is_empty()) {
        let (name, size) = axis.rsplit_once('=')?;
        let name = name.strip_prefix('"')?.strip_suffix('"')?;
        let size: usize = size.parse().ok().filter(|&size| size > 0)?;
        devices = devices.checked_mul(size).filter(|&d| d <= MOST_DEVICES)?;
        axes.push((name.to_owned(), size));
    }
    Some(axes)
}
