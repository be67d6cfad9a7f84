"""The benchmark sets that ``data_folder`` reads: what they are, their columns, and the sums of their contents."""

from __future__ import annotations

from dataclasses import dataclass, field

from bnn_pyro.embedded import DataCard


@dataclass(frozen=True)
class FolderSet:
    """A card and how its files read: ``header`` is the first line of data.csv, the sums are of the row numbers."""

    card: DataCard
    header: str
    splits_sum: str
    gap_sum: str = ""
    drop: tuple[str, ...] = ()
    rename: dict[str, str] = field(default_factory=dict)
    counts: bool = False


_ALL = (
    FolderSet(
        DataCard(
            "uci/boston",
            "regression",
            "MEDV",
            "Median value of homes in 506 tracts around Boston, in $1000, capped at "
            "50. Its column B encodes racial composition: for comparison with old tables only.",
            "Harrison & Rubinfeld 1978; StatLib",
            "79ac716620024011b03c0c44d2bf99069b8173649181926d9109c25475a3804c",
            "none stated",
            where="folder",
            splits=20,
            gap_splits=13,
        ),
        "CRIM,ZN,INDUS,CHAS,NOX,RM,AGE,DIS,RAD,TAX,PTRATIO,B,LSTAT,MEDV",
        "9d742a422cda188037e3181d16dc8e05f8983421cca3a02dab37fe406936c6cd",
        "aafabae001ff0c46ff1d19ce56bbf4ea7e9130ce8b48f134c783883b3f95ad6b",
    ),
    FolderSet(
        DataCard(
            "uci/concrete",
            "regression",
            "strength",
            "Compressive strength of concrete in MPa, from seven ingredients and its age in days.",
            "Yeh 1998; UCI 165",
            "d0282e7eec33fa9fc0cef0bc0fd3d2bd3eec112d2178d660b6e0b1ba4b96c541",
            "CC BY 4.0 (UCI)",
            where="folder",
            splits=20,
            gap_splits=8,
        ),
        "cement,slag,fly_ash,water,superplasticizer,coarse_aggregate,fine_aggregate,age,strength",
        "396dea99f1a741dcf8a00bfed2336e1ed56f7b6e5001e93287feb192976f4747",
        "0b023d84d2c4287371c6a2807e96ddef830d6e8f10e3f33617aaa6eda7877a99",
    ),
    FolderSet(
        DataCard(
            "uci/kin8nm",
            "regression",
            "y",
            "Distance of the hand of a simulated robot arm with eight joints; strongly non-linear, little noise.",
            "DELVE, University of Toronto",
            "e74acfb93744b300a8bca76890a2a4a2f3dedf0ea6a76a7fb353da44ee91c773",
            "none stated",
            where="folder",
            splits=20,
            gap_splits=8,
        ),
        "theta1,theta2,theta3,theta4,theta5,theta6,theta7,theta8,y",
        "d923ed770ffe8c3fce1928338d23762302653cc7f39252d1d177ce2ccca997c9",
        "a96e17652a31e1834564c9ee69218f33003cf88ba894849928c2d158582d0ed3",
    ),
    FolderSet(
        DataCard(
            "uci/naval",
            "regression",
            "compressor_decay",
            "Decay of a ship's gas turbine compressor (0.95-1), from 16 measurements, of which T1 and P1 are constant.",
            "Coraddu et al. 2016; UCI 316",
            "df89b41dc0df74dba4c8b51978d707c45df6d0214f97721d17dfddbcae091cfd",
            "CC BY 4.0 (UCI, for all of its sets)",
            where="folder",
            splits=20,
            gap_splits=16,
        ),
        "lever_position,ship_speed,gt_torque,gt_rpm,gg_rpm,starboard_torque,port_torque,T48,T1,"
        "T2,P48,P1,P2,Pexh,turbine_injection,fuel_flow,compressor_decay,turbine_decay",
        "8b43ef22127abcec822de27d6120f26f2bf2f85d76419ef5e6a0d0376f9d670e",
        "de56023b764d8ae95643c62760645532d5d78bc95e2275f5ce43c214bbebfcc1",
        drop=("turbine_decay",),
    ),
    FolderSet(
        DataCard(
            "uci/protein",
            "regression",
            "RMSD",
            "Deviation of 45730 predicted protein structures from the true "
            "ones, in angstrom; 5 splits, as in the literature.",
            "Rana 2013; UCI 265",
            "5879f143cf15b2f59e63ddd413bc11417b1cd6ef311ff6f449b0aeb5b861e1f0",
            "CC BY 4.0 (UCI, for all of its sets)",
            where="folder",
            splits=5,
            gap_splits=9,
        ),
        "F1,F2,F3,F4,F5,F6,F7,F8,F9,RMSD",
        "820c62cbe484a355fd5093d044a52a54f35ec7fc8c14b81927d06b31a30bef56",
        "9d2b8304891d1f88583082bd0e43e18d1a1159cc66a174c4713407adf6ab2038",
    ),
    FolderSet(
        DataCard(
            "uci/wine",
            "regression",
            "quality",
            "Quality of red wine (whole numbers 3-8) from 11 chemical measurements.",
            "Cortez et al. 2009; UCI 186, red part",
            "b51c8ee6ca1f66473bd98042780da9ce3eceaf6fe113441e8f2c3ee593b02318",
            "CC BY 4.0 (UCI, for all of its sets)",
            where="folder",
            splits=20,
            gap_splits=11,
        ),
        "fixed_acidity,volatile_acidity,citric_acid,residual_sugar,chlorides,free_sulfur_dioxide,"
        "total_sulfur_dioxide,density,pH,sulphates,alcohol,quality",
        "ed136086b8776138b563c86a66a88c6c57131b4a3810a3c127c1f843775bd4d3",
        "d213c65f9417b7f6305f6d68ab9d9e8c9375f768df4376e2ac0bbf6866a422ee",
    ),
    FolderSet(
        DataCard(
            "airfoil",
            "regression",
            "sound_pressure_level",
            "Noise of an airfoil in a wind tunnel, in decibels, from frequency, angle, chord, speed and thickness.",
            "Brooks, Pope & Marcolini 1989; UCI 291",
            "9599fdf6ead339c7fb62d8d62738ce8d927f078967e69be861d3ab754e629351",
            "CC BY 4.0 (UCI, for all of its sets)",
            where="folder",
            splits=20,
        ),
        "frequency,angle_of_attack,chord_length,"
        "free_stream_velocity,suction_side_displacement_thickness,sound_pressure_level",
        "8005eb8d1ee4d8b8a8c42e9889ad2786efe0b9282b92fe44962efcab14472049",
    ),
    FolderSet(
        DataCard(
            "bikesharing",
            "regression",
            "cnt",
            "Counts of bicycles rented in each of 17379 hours in time order. The "
            "first column is the number of the row, though the file calls it season.",
            "Fanaee-T & Gama 2013; UCI 275",
            "cfccb4778c472d1009439db48f0a3c1369769a5b267acf86d2669a618c971990",
            "CC BY 4.0 (UCI, for all of its sets)",
            where="folder",
            splits=20,
        ),
        "season,yr,mnth,hr,holiday,weekday,workingday,weathersit,temp,atemp,hum,windspeed,cnt",
        "b0051e5933cdf423e9677ae3e787c728ee14f00f6e250e65bf57ab56f4068da6",
        rename={"season": "instant"},
        counts=True,
    ),
    FolderSet(
        DataCard(
            "mcycle",
            "regression",
            "accel",
            "Acceleration of a helmet in g by milliseconds after a motorcycle's impact; noise changes with time.",
            "Silverman 1985; R's MASS",
            "93d06e3d834a5c21056b40f16fcd03c4384acff5020e273453d5cd62d730f0c8",
            "none stated; MASS is GPL-2 or GPL-3",
            where="folder",
            splits=20,
        ),
        "times,accel",
        "edaac0b17fce7d05c305caa9c43649e37c11c47b145fa19c4670656d24976cef",
    ),
    FolderSet(
        DataCard(
            "german_credit",
            "classification",
            "bad_credit",
            "Bad (1, 300 rows) or good (0) credit from 24 whole numbers.",
            "Hofmann 1994; UCI 144, numeric form",
            "14f17e7ef505a0a248a769572f0372a2552848672015e3750a7239bc9adf4cd5",
            "CC BY 4.0 (UCI, for all of its sets)",
            where="folder",
            splits=20,
        ),
        ",".join([f"x{i}" for i in range(1, 25)] + ["bad_credit"]),
        "119494a09c8b0e37bd9c13d6bca849fcb2645cf5595e89575bf1ff6d20f72a6e",
    ),
    FolderSet(
        DataCard(
            "ionosphere",
            "classification",
            "label",
            "Good (1, 225 rows) or bad (0) radar returns from the ionosphere, from 33 measurements.",
            "Sigillito et al. 1989; UCI 52",
            "c9b9b283114c71e398c5b96d424a1a8351376c0bc027d8800d5c82fe8ef73f4d",
            "CC BY 4.0 (UCI, for all of its sets)",
            where="folder",
            splits=20,
        ),
        ",".join([f"x{i}" for i in range(1, 34)] + ["label"]),
        "f67a6eb14a2091d47e5c0c1099aa0446311199b4607132452f153f16a4148714",
    ),
)
FOLDER = {entry.card.name: entry for entry in _ALL}
