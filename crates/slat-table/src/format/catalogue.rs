//! Every format with every kind of hardware that changes its shape, as one list.
//!
//! What holds for one format has to hold for all: tests, the model of the machine and the tools
//! run over this list, so a format that is added here is tested everywhere.

/// Expands `$each! { .. }` with the list of all formats, one line each:
///
/// ```text
/// name "name-for-people" Type features address_bits;
/// ```
///
/// `name` can name a test or module, `features` is an expression of the format's
/// [`Features`](crate::format::Format::Features), `address_bits` the widest guest address that
/// the line is for.
#[macro_export]
macro_rules! every_format {
    ($each:path) => {
        $each! {
            // Arm VMSAv8-64
            arm64_4k "arm64-4k" $crate::format::arm64::Arm64 $crate::format::arm64::Arm64Features::ALL 48;
            arm64_4k_plain "arm64-4k-plain" $crate::format::arm64::Arm64 $crate::format::arm64::Arm64Features::NONE 48;
            arm64_4k_two_levels "arm64-4k-two-levels" $crate::format::arm64::Arm64 $crate::format::arm64::Arm64Features::ALL 34;
            arm64_4k_lpa2 "arm64-4k-lpa2" $crate::format::arm64::Arm64Lpa2 $crate::format::arm64::Arm64Features::WIDE 52;
            arm64_16k "arm64-16k" $crate::format::arm64::Arm64Granule16K $crate::format::arm64::Arm64Features::ALL 47;
            arm64_16k_concatenated "arm64-16k-concatenated" $crate::format::arm64::Arm64Granule16K $crate::format::arm64::Arm64Features::ALL 48;
            arm64_16k_lpa2 "arm64-16k-lpa2" $crate::format::arm64::Arm64Granule16KLpa2 $crate::format::arm64::Arm64Features::WIDE 52;
            arm64_64k "arm64-64k" $crate::format::arm64::Arm64Granule64K $crate::format::arm64::Arm64Features::ALL 48;
            arm64_64k_lpa "arm64-64k-lpa" $crate::format::arm64::Arm64Granule64K $crate::format::arm64::Arm64Features::WIDE 52;
            // Armv7 LPAE
            armv7 "armv7" $crate::format::armv7::Armv7 $crate::format::armv7::Armv7Features::ALL 40;
            armv7_two_levels "armv7-two-levels" $crate::format::armv7::Armv7 $crate::format::armv7::Armv7Features::ALL 34;
            // Intel EPT
            ept_4 "ept-4" $crate::format::ept::Ept $crate::format::ept::EptFeatures::ALL 48;
            ept_5 "ept-5" $crate::format::ept::Ept $crate::format::ept::EptFeatures::ALL 57;
            ept_none "ept-none" $crate::format::ept::Ept $crate::format::ept::EptFeatures::NONE 48;
            // AMD nested paging
            npt_4 "npt-4" $crate::format::npt::Npt $crate::format::npt::NptFeatures::ALL 48;
            npt_5 "npt-5" $crate::format::npt::Npt $crate::format::npt::NptFeatures::FIVE_LEVELS 57;
            npt_encrypted "npt-encrypted" $crate::format::npt::Npt $crate::format::npt::NptFeatures::ENCRYPTED 48;
            // RISC-V
            sv32x4 "sv32x4" $crate::format::riscv::sv32x4::Sv32x4 $crate::format::riscv::sv32x4::Sv32x4Features::ALL 34;
            sv39x4 "sv39x4" $crate::format::riscv::RiscV $crate::format::riscv::RiscVFeatures::ALL 41;
            sv48x4 "sv48x4" $crate::format::riscv::RiscV $crate::format::riscv::RiscVFeatures::ALL 50;
            sv57x4 "sv57x4" $crate::format::riscv::RiscV $crate::format::riscv::RiscVFeatures::ALL 59;
            sv39x4_none "sv39x4-none" $crate::format::riscv::RiscV $crate::format::riscv::RiscVFeatures::NONE 41;
            // s390
            s390_segment "s390-segment" $crate::format::s390::S390 $crate::format::s390::S390Features::ALL 31;
            s390_region3 "s390-region3" $crate::format::s390::S390 $crate::format::s390::S390Features::ALL 42;
            s390_region2 "s390-region2" $crate::format::s390::S390 $crate::format::s390::S390Features::ALL 53;
            s390_region1 "s390-region1" $crate::format::s390::S390 $crate::format::s390::S390Features::ALL 63;
            s390_none "s390-none" $crate::format::s390::S390 $crate::format::s390::S390Features::NONE 42;
            // POWER
            power_4k "power-4k" $crate::format::power::Power4K $crate::format::power::PowerFeatures::ALL 52;
            power_64k "power-64k" $crate::format::power::Power64K $crate::format::power::PowerFeatures::ALL 52;
        }
    };
}
