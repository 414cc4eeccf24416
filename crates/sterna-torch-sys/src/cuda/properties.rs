//! What a GPU is, as its driver says.

use std::fmt::Write as _;

use cudarc::driver::{
    result,
    sys::{self, CUdevice_attribute},
};

use crate::kernels::Error;

/// A GPU by name and number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// The vendor's name, such as `NVIDIA H200`.
    pub name: String,
    /// Its memory, bytes.
    pub total_memory: u64,
    /// Major and minor number of what its processors can do.
    pub compute_capability: (u32, u32),
    /// The newest CUDA that the driver serves, major and minor.
    pub driver_cuda: (u32, u32),
    /// The name that no other GPU has, such as `GPU-6d1f2a90-...`: the same in every process, whatever it sees of the machine.
    pub uuid: String,
}

/// What GPU `device_index` of this process is.
///
/// # Errors
///
/// Those of [`super::load`]; [`crate::Error::Kernels`] if there is no such device.
pub fn properties(device_index: usize) -> Result<Properties, crate::Error> {
    // Loads the driver's library, which cudarc then finds by its name.
    super::load()?;
    let failed = || Error::driver(format!("describe device {device_index}"));
    result::init().map_err(Error::driver("start"))?;
    let device = result::device::get(device_index as i32).map_err(failed())?;
    let attribute = |attribute| {
        // SAFETY: `device` comes from the driver.
        unsafe { result::device::get_attribute(device, attribute) }.map(i32::unsigned_abs)
    };
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    // SAFETY: as above.
    let total_memory = unsafe { result::device::total_mem(device) }.map_err(failed())?;
    let mut version = 0;
    // SAFETY: `version` is a variable of this function.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(failed())?;
    let version = version.unsigned_abs();
    let uuid = result::device::get_uuid(device).map_err(failed())?;
    Ok(Properties {
        name: result::device::get_name(device).map_err(failed())?,
        total_memory: total_memory as u64,
        compute_capability: (major.map_err(failed())?, minor.map_err(failed())?),
        driver_cuda: (version / 1000, version % 1000 / 10),
        uuid: uuid_text(uuid.bytes.map(|byte| byte as u8)),
    })
}

/// A UUID as `nvidia-smi -L` and `CUDA_VISIBLE_DEVICES` write it.
fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = "GPU".to_owned();
    for (i, byte) in bytes.iter().enumerate() {
        let dash = if [0, 4, 6, 8, 10].contains(&i) { "-" } else { "" };
        let _ = write!(text, "{dash}{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_the_tools_of_the_vendor_do() {
        let bytes = std::array::from_fn(|i| 0xf0 ^ i as u8);
        assert_eq!(uuid_text(bytes), "GPU-f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff");
    }
}
