"""Where the texts of each protocol are: repository, commit, file, sha256 and length. The texts are not here.

Names in braces in a text are its placeholders, as the authors' source spells them; ``str.format`` fills them in.
"""

from irg.downloads import Origin, github
from irg.reasoning.protocols.official_texts import OfficialText

_BAGEL = github("ByteDance-Seed/Bagel", "056b5fd51a88c1eb4547318609e25d40080fcf87", "Apache-2.0")
_UMM = github("waltstephen/UMM-Reflection", "85107969869b2b82be69efd8475761a7870bc733", "Apache-2.0")
_RVR = github("LeapLabTHU/RvR", "79d803e0ea5c1d39195cd209dba2e4313bfd9234", "MIT")
_UNIREASON = github("AlenjandroWang/UniReason", "c932e9ecbbaabd1595e24172e96e89a9542949da", "Apache-2.0")
_UNICOT = github("Fr0zenCrane/UniCoT", "56212e43952aeddb7bdc8938560d899d5fd5bffb", "Apache-2.0")
_UNICOT_2 = github("Fr0zenCrane/UniCoT", "3b538c51dc6c074b0eb5bb19ec7353067165f809", "Apache-2.0")
_THINKMORPH = github("ThinkMorph/ThinkMorph", "c1a48adfa212259c8ad79dfd9d05d87c27340cef", "Apache-2.0")
_R3 = github("sen-ye/R3", "e9912ac5fe9dd24f6429ed2c8719fb76f44d355f", "Apache-2.0")


def _texts(origin: Origin, path: str, file_bytes: int, **texts: tuple[int, str]) -> dict[str, OfficialText]:
    """Texts of one file, given as name = (length, sha256)."""
    return {name: OfficialText(origin, path, sha256, length, file_bytes) for name, (length, sha256) in texts.items()}


PINNED_TEXTS: dict[str, dict[str, OfficialText]] = {
    "bagel": _texts(
        _BAGEL,
        "inferencer.py",
        12_371,
        think=(209, "837914a3f5f8ec1be30d2fdb68f4e494a3d4767056100a113c4109af5367d390"),
        answer=(227, "5eff00888fdf6b912c3f9a80711933dd35cdd164d167cba6b2a5889c04d7b565"),
    ),
    "umm-reflection": _texts(
        _UMM,
        "assets/prompts/controller_system_prompt.txt",
        2_059,
        system=(2058, "5e0fe5907077b966ac0003cca377c91d1981691b5c4ac5fe8307518135a9cf3f"),
    )
    | _texts(
        _UMM,
        "third_party/Bagel/data/existing_exact_edit_relocation_contract.py",
        6_996,
        refused_thinking_1=(41, "ebbfd42059c083c4ffef48cf14906bb35b4034ea7b1301fea0f153afebe6cb01"),
        refused_thinking_2=(67, "2ceaf4b2b3f9ebad3459ee0ff411f9e963615bcdf0cd16b6db746943ffded6a8"),
        empty_edit_1=(18, "4ae38ef89a082a2cd19c10192c8657ef7dd3dce0b3772f31a5766a1d13a887ca"),
        empty_edit_2=(26, "8037681f30fa9d09c3b71b85e7952f8a1dbc4c0aaa206fb565ee159fa8f07875"),
        empty_edit_3=(31, "ad9db5d79a2e72744c00389a88abd0571c15e28a57e7ffd5ef047f3185f324b0"),
        empty_edit_4=(25, "1072f52a9cb5194a94b4c3c8a3b1e9d499710fbc7642a52a0a71f67779170eb5"),
    ),
    "rvr": _texts(
        _RVR,
        "inferencer.py",
        12_779,
        system=(187, "dbb330a2ae7ea6e9ce724fc42cf23849ed6fd865caa89edd355df7d40486eff8"),
    )
    | _texts(
        _RVR,
        "app.py",
        20_075,
        prompt_sentence=(42, "f9d4c1181a7a09c0cce07d79819083f418784c843b216284e51eade1efdffd1e"),
    ),
    "unireason": _texts(
        _UNIREASON,
        "UniReason/eval/gen/gen_images_mp_wise_refine.py",
        21_679,
        think=(209, "837914a3f5f8ec1be30d2fdb68f4e494a3d4767056100a113c4109af5367d390"),
        thought_sentence=(225, "f0f34065082333594902a5db9c00a443be8d6cfcdf5b82998c54e36952e83cd9"),
    )
    | _texts(
        _UNIREASON,
        "UniReason/eval/gen/gen_images_mp_corebench_refine.py",
        26_793,
        refinement_system=(668, "793f79aed09f179cd8235758475b3a68216fb33dc9ec981aabca4597dab99221"),
        request=(75, "30212e09b8fcb49b19303c91a54da4eb6f758a0974427e3c867d5dab846aec02"),
        suggestion_sentence=(239, "c7d91f9833d5c3e4892953da5d43cc562830236ff9a9e139a6218a204519787a"),
    )
    | _texts(
        _UNIREASON,
        "UniReason/eval/gen/gen_images_mp_kris_refine.py",
        30_825,
        edit_sentence=(264, "aafce1ff0f628728c6d945a60ded37ce1ac8a830f6b565e40ce36299a2af42d1"),
    ),
    "unicot": _texts(
        _UNICOT,
        "inference_mdp_self_reflection.py",
        28_341,
        system=(753, "ab45be60384e7a08864591e1e94962fd6d90f885a286fc8fe0d79edfa14c187e"),
        rewriting_request=(197, "c679290dc62e21c02c9ecc84edffc1292f982630f2bc2c182c9a5e31fd13dfe2"),
        stop_phrase_1=(18, "78da2e51f43e0030818c4f306459f3c8aecdbb6a321d3073ee05b89024ccc518"),
        stop_phrase_2=(18, "193ad5c48747d76c10981a0086e7ca8715953f3ab6bf39a3a3c9ea540909a2ad"),
        stop_phrase_3=(10, "d239fb7b94063587e834d465973afc7de041ec8411bfaf9fc3c69250ad6f9e88"),
        stop_phrase_4=(10, "18637d63859edd2e2f25e68395a4528eaa787658977b5c2a0ea636998c695cee"),
    ),
    "unicot-v0.2": _texts(
        _UNICOT_2,
        "inference_unicot_v0.2.py",
        29_524,
        system=(982, "361c1b8cab8792d528d28839677641cb6133590b473ff4f510ccbf4f6687249d"),
        stop_phrase_1=(18, "78da2e51f43e0030818c4f306459f3c8aecdbb6a321d3073ee05b89024ccc518"),
        stop_phrase_2=(18, "193ad5c48747d76c10981a0086e7ca8715953f3ab6bf39a3a3c9ea540909a2ad"),
        stop_phrase_3=(10, "d239fb7b94063587e834d465973afc7de041ec8411bfaf9fc3c69250ad6f9e88"),
        stop_phrase_4=(10, "18637d63859edd2e2f25e68395a4528eaa787658977b5c2a0ea636998c695cee"),
    ),
    "thinkmorph": _texts(
        _THINKMORPH,
        "inferencer.py",
        13_148,
        system=(404, "85c1385d547250460d3f836c7a78c642e671afba9b9cced62caa5c18bf671ad3"),
    ),
    "r3": _texts(
        _R3,
        "train/rollout_controller.py",
        92_027,
        think=(210, "5da62fd7987ad29bab9322636ecf7b6190752ccafbb55150957e79cc3a3201be"),
        answer=(227, "5eff00888fdf6b912c3f9a80711933dd35cdd164d167cba6b2a5889c04d7b565"),
    )
    | _texts(
        _R3,
        "train/online_rl.py",
        66_327,
        question=(272, "2a0a6694e61773328dd98591de34b17b2e6b58c23cebf78a7f0382ae3f32d17d"),
    ),
}
"""By protocol, then by what the text is for."""
