"""What a person saw and read: which stamps are photographs, whose they are, and what each scene may be used for.

make_split.py turns this into split.csv. The choices come from contact sheets (is it a photograph?) and from each
package's copyright file, the stamps' changelog and the wallpapers' metadata (whose is it, under what licence?).

A stamp whose stated licence cannot be combined with the GPL (CC-BY-SA 2.5 and 3.0, GFDL), or whose origin is given
without a licence, never reaches the test split: only the test split is passed on, as `demo/`.
"""

STAMPS_ROOT = "usr/share/tuxpaint/stamps/"

# Folders that hold no photograph of an object.
STAMP_FOLDERS_LEFT_OUT = ("symbols/",)

# Not in a `cartoon` folder, yet drawn (or a sign that may be): stems. Drawings serve training only.
DRAWINGS = set(
    """bee hedgehog button blue_fedora feathered_hat green_fedora propeller_hat sombrero tophat t_baseballcap t_glove
    t_jacket t_pants t_poloshirt t_scarf t_shirt t_sock t_tshirt pizza tooth eye Santa candy_cane star tree bluebird
    bunny-egg bunny-head bunny butterfly chick-hatched chick-in-egg chick jackolantern_mean dreydl menorah fireworks
    fireworks2 0_sun blue-and-yellowflag checkeredflag greenflag redflag whiteflag yellowflag inukshuk-outline
    crossroads give_way_sign hospital roundabout stoplight_01_red stoplight_02_yellow stoplight_03_green t-junction toilets
    xing_ped xing_school yield lion teddy_bear snail""".split()
)
# `lion`, `snail` and `teddy_bear` also name photographs; those of a cartoon or toy folder are drawings anyway.
PHOTOGRAPHS = {"animals/mammals/cats/lion.png"}
DRAWING_FILES = {"seasonal/easter/daffodil.png", "seasonal/easter/butterfly.png"}

# Left out altogether: the same picture again, or nothing to recognise.
DUPLICATES = {
    "military/fireman240a.png",
    "people/fireman240a.png",
    "seasonal/hanukkah/dreydl-gimmel.png",
    "seasonal/hanukkah/dreydl-hay.png",
    "seasonal/hanukkah/dreydl-nun.png",
    "seasonal/hanukkah/dreydl-shin.png",
}

# Photographs that only training may use: see-through or hair-thin, so no camera would see them as composed.
TRAIN_ONLY = set("glass explosion fire lightningbolt rugby_goal_posts fly shrimp".split())

# Small photographs (32 to 59 px): too coarse to search for, good as distractors on a plain background.
SMALL_PHOTOGRAPHS = set(
    """moonwrasse clothespin_new clothespin_old apple_fuji apple_granny_smith apple_green apple_red apple_sierra_beauty
    banana mango orange pear pomegranate raspberry strawberry almond pecan carrot eggplant garlic garlics
    lettuce mushroom pattypan_squash pepper potato pumpkin_small tomato highlighter scissors_small_closed
    scissors_small_open teapot nutcracker key measuring_tape wrench_adjustable old_naval_shell holly_leaves beetle""".split()
)

# Views of one thing (another frame, pose or crop): always on one side of the split. Prefixes of stems.
FAMILIES = ["gnu", "cep", "pig_golden", "moon_", "Candy_cane_photo", "heron_greatblue", "fireman", "grave-", "guitar",
            "tiger", "lion", "sheep", "donkey", "rabbit", "dreydl", "stoplight", "xing_", "inukshuk"]

GPL2 = "GPL-2.0-or-later"

# Stamps whose licence or origin the changelog states otherwise than the package's GPL: stem -> (author, licence).
NOT_FOR_TEST = {}
for _stems, _author, _licence in [
    ("adeenia anthoorium appooppanthady bolsom chemparathi chuvanna_plastic_poo",
     "VHSS Irimpanam school, Kerala, via Vimal Joseph", "CC-BY-SA-3.0"),
    ("pelican heron_greatblue heron_greatblue_flying", "Erinn Lynch", "CC-BY-SA-2.5"),
    ("helmeted_guineafowl", "Paul Venter", "GFDL"),
    ("Christmas_pudding", "Musical Linguist at Wikipedia", "GFDL"),
    ("Lightbulb", "KMJ and Edokter at Wikipedia", "GFDL"),
    ("Apricot_whole Cherry_Stella Strawberry2", "Benjamint444 at Wikipedia", "GFDL"),
    ("Woodlouse", "Joaquim Alves Gaspar", "GFDL"),
    ("Brown_slug", "Guttorm Flatabø", "GFDL or CC-BY-SA-2.5"),
    ("German_Christmas_toy", "André Karwath", "CC-BY-SA"),
    ("inukshuk-photo", "Ansgar Walk", "CC-BY-SA-2.5"),
    ("firetruck", "Aaron M. Lang", "CC-BY-2.5"),
    ("Mince_Pie", "Jmb at Wikipedia", "CC-BY-2.5"),
    ("Roast_turkey", "Patrick Fitzgerald", "CC-BY-2.0"),
    ("pineapple", "Mike Fitzpatrick", "GPL-2.0-or-later as packaged; origin a stock-photo site, its terms not stated"),
    ("grapes sliced_orange sliced_lime", "unknown",
     "GPL-2.0-or-later as packaged; origin a stock-photo site, its terms not stated"),
    ("""australian_rules_football basketball cricketball tennis_ball tennis_racket bassoon cello guitar_classical
     guitar2 cymbal_crash drumkit drum_tomtom_floor guitar_electric_bass guitar_electric trumpet violin
     apricot traffic_cone""",
     "Wikipedia, prepared by Caroline Ford", "GPL-2.0-or-later as packaged; the Wikipedia page's own licence not stated"),
]:
    for _stem in _stems.split():
        NOT_FOR_TEST[_stem] = (_author, _licence)

CHILDSPLAY = "Stas Zytkiewicz (Childsplay), adapted by Pere Pujal i Carabantes"
STAMP_AUTHORS = {}
for _stems, _author in [
    ("""badger bear beaver bee bison blackbird bull camel caribou chimp cow crow cuckoo deer doe dog dolphin donkey
     dromedary duck elephant ferret fly fox frog gander goat gorilla grasshopper hippopotamus hornet horse iguana koala
     lark lion marmot mountaingoat mouse nandou orca owl penguin pig quetzal rabbit ram rooster seagull
     sea_lion squirrel tiger tucan turkey vulture whale wombat xanthia yak zebra pigeon wildboar zebu wapiti rat""",
     CHILDSPLAY),
    ("""holm_oak cep cep-1 cep-2 rabbit-2 dumper gnu-baby gnu-baby-stand gnu-sitting gnu-stand frog-1 mantis
     european-bear birch thyme""", "Pere Pujal i Carabantes"),
    ("""kettle wheelie_bin highlighter mug uk_post_box dead_end_sign school_sign beetle old_naval_shell pink_tricycle
     ww2_german_gun holly_leaves home_compost_bin drake cow_white sheep rabbit_little sheep_lamb pig_golden
     pig_golden2 chicken_profile donkey_eating no_entry_sign""", "Caroline Ford"),
    ("""albino_peahen crowned_crane guineafowl magellanic_penguin ostrich peacock pink_flamingo rhino_black capybara
     tamarin_emperor giraffe indian_blackbuck tiger_sumatran railroad_crossing""", "Bill Kendrick"),
    ("""liberia-palm tree336 grave-a grave-b grave-c grave-d grave-e grave-f grave-g grave-h grave-i grave-j balloon360
     soccer football fireman200b fireman240a bradley lightningbolt indycar paratrooper toilet 747 stop final-roll-call
     infantry-stryker 7spoke256""", "Albert Cahalan"),
    ("""mandarine lemon yellow-flower pigface abalone adelaide-rosella dingo kangaroo little-penguin magpie
     murray-mussel rainbow-lorikeet silver-gull""", "Chris Goerner"),
    ("flower1 flower2 flower3 flower4 flower5 flower6 flower7 flower8 flower9 flower10", "Akkana Peck"),
    ("corn broccoli", "Steve Karg"),
    ("chineseJunk walnutBoat edward_bear grannysmith", "Jim Trice"),
    ("hen butterflyfish bluegroper clownfish coraltrout dolphinfish lionfish moonwrasse stripedfish", "John O'Sullivan"),
    ("sedan", "Justin Zeigler"),
    ("binoculars hammer plyers saw wrench wrench_plumbers wrench_adjustable measuring_tape mallet_metal toolbox "
     "paintbrush_large pitcher_small nutcracker mango pear pomegranate strawberry walnut", "Jen and Ed Collins, Bill Kendrick"),
    ("apple_fuji apple_granny_smith apple_sierra_beauty pattypan_squash chilepepper eggplant garlics pumpkin_small "
     "redlettuce yellowpepper banana teapot garbagecan", "Bill Kendrick (Coco Ranch)"),
]:
    for _stem in _stems.split():
        STAMP_AUTHORS[_stem] = (_author, GPL2)
for _stems, _author in [
    ("shrimp lobster seahorse", "United States National Oceanic & Atmospheric Administration"),
    ("stethoscope", "unknown (Wikipedia)"),
    ("syringe", "United States Drug Enforcement Administration"),
    ("f22_raptor", "TSgt Ben Bloker (United States Air Force), prepared by Steve Karg"),
    ("Candy_cane_photo_1 Candy_cane_photo_2", "Kathleen French"),
    ("Christmas_Tree_photo", "Jorge Barrios"),
]:
    for _stem in _stems.split():
        STAMP_AUTHORS[_stem] = (_author, "public domain, packaged as GPL-2.0-or-later")
STAMP_DEFAULT = ("Tux Paint stamps contributors (Bill Kendrick, editor)", GPL2)

# Scenes and distractor photos.
TUX = "Bill Kendrick and Tux Paint contributors"
KDE = "LGPL-3.0"
SCENES = [
    # package, kind, split, author, licence, files
    # Test scenes: what the demo's query photos are made of, so only what may be combined with GPL stamps under GPL 3.
    ("tuxpaint-data", "scene", "test", TUX, GPL2,
     "usr/share/tuxpaint/templates/{burnt_bark,cliff,corn_maze,lighthouse,mossy_log,mudstone,ocean_waves,"
     "rocks,sheep,wool_mill_machine,redwoods_above,sun_behind_clouds}.jpg"),
    ("mate-backgrounds", "scene", "test", "Marco Cogoni, Hylke Bons", GPL2, "usr/share/backgrounds/mate/nature/Dune.jpg"),
    ("mate-backgrounds", "scene", "test", "Timothy Schellhase, Lapo Calamandrei", GPL2,
     "usr/share/backgrounds/mate/nature/GreenMeadow.jpg"),
    ("mate-backgrounds", "scene", "test", "Jean-François Fortin Tam", GPL2, "usr/share/backgrounds/mate/nature/Wood.jpg"),
    ("mate-backgrounds", "scene", "test", "Sergey Nazarov", GPL2, "usr/share/backgrounds/mate/nature/Storm.jpg"),
    ("lomiri-wallpapers-16.04", "scene", "test", "Clemens Engelhardt", "CC0-1.0",
     "usr/share/backgrounds/seeding_by_Clements_Engelhardt.jpg"),
    ("lomiri-wallpapers-16.04", "scene", "test", "Aitzol Berasategi", "CC-BY-4.0",
     "usr/share/backgrounds/{picosdeeuropa,life}_by_Aitzol_Berasategi.jpg"),
    ("lomiri-wallpapers-16.04", "scene", "test", "Jakub Mede", "CC-BY-4.0", "usr/share/backgrounds/Wine_by_Jakkub_Mede.jpg"),
    # Distractors: photos that no query shows.
    ("tuxpaint-data", "distractor", "test", TUX, GPL2,
     "usr/share/tuxpaint/templates/{jellyfish,spiders_web,sun_behind_leaves,trees_at_dusk,ocean_splash}.jpg"),
    ("mate-backgrounds", "distractor", "test", "blackcombwhistler07", GPL2, "usr/share/backgrounds/mate/nature/RainDrops.jpg"),
    ("mate-backgrounds", "distractor", "test", "Charles Barbin, Hylke Bons", GPL2,
     "usr/share/backgrounds/mate/nature/TwoWings.jpg"),
    ("mate-backgrounds", "distractor", "test", "Charles Barbin", GPL2,
     "usr/share/backgrounds/mate/nature/{YellowFlower,Aqua}.jpg"),
    ("mate-backgrounds", "distractor", "test", "Jens Ansorg", GPL2, "usr/share/backgrounds/mate/nature/FreshFlower.jpg"),
    ("lomiri-wallpapers-16.04", "distractor", "test", "Sander Klootwijk", "CC-BY-SA-4.0",
     "usr/share/backgrounds/Bridge_by_Sander_Klootwijk.jpg"),
    ("lomiri-wallpapers-16.04", "distractor", "test", "Bolly", "CC-BY-SA-4.0", "usr/share/backgrounds/Dragonfly_by_Bolly.jpg"),
    ("lomiri-wallpapers-16.04", "distractor", "test", 'Trevor "Freespace"', "CC-BY-4.0",
     "usr/share/backgrounds/{Picture_0B,Picture_1A}_by_freespace.jpg"),
    ("lomiri-wallpapers-16.04", "distractor", "test", "Peter Nerlich", "CC-BY-SA-4.0",
     "usr/share/backgrounds/{free,greentock}_by_Peter_Nerlich.jpg"),
    ("lomiri-wallpapers-16.04", "distractor", "test", "Aitzol Berasategi", "CC-BY-4.0",
     "usr/share/backgrounds/sunset_by_Aitzol_Berasategi.jpg"),
    ("palapeli-data", "distractor", "test", "Derek Jensen", "public domain",
     "usr/share/palapeli/collection/cincinnati-bridge.jpg"),
    ("palapeli-data", "distractor", "test", "US Department of Agriculture", "public domain",
     "usr/share/palapeli/collection/citrus-fruits.jpg"),
    ("palapeli-data", "distractor", "test", "John Severns", "public domain",
     "usr/share/palapeli/collection/european-honey-bee.jpg"),
    ("plasma-workspace-wallpapers", "distractor", "test", "Dmitri Popov", KDE,
     "usr/share/wallpapers/ColorfulCups/contents/images/2560x1600.jpg"),
    ("plasma-workspace-wallpapers", "distractor", "test", "Risto Saukonpää", KDE,
     "usr/share/wallpapers/OneStandsOut/contents/images/2560x1600.jpg"),
    ("plasma-workspace-wallpapers", "distractor", "test", "Martin Klapetek", KDE,
     "usr/share/wallpapers/FallenLeaf/contents/images/2560x1600.jpg"),
    ("plasma-workspace-wallpapers", "distractor", "test", "Maciej Wiklo", KDE,
     "usr/share/wallpapers/BytheWater/contents/images/2560x1600.jpg"),
    # Validation scenes.
    ("mate-backgrounds", "scene", "val", "Charles Barbin", GPL2, "usr/share/backgrounds/mate/nature/{Garden,LadyBird}.jpg"),
    ("plasma-workspace-wallpapers", "scene", "val", "Risto Saukonpää", KDE,
     "usr/share/wallpapers/Path/contents/images/2560x1600.jpg"),
    ("plasma-workspace-wallpapers", "scene", "val", "Ian Hex", KDE,
     "usr/share/wallpapers/EveningGlow/contents/images/2560x1600.jpg"),
    ("tuxpaint-data", "scene", "val", TUX, GPL2, "usr/share/tuxpaint/templates/trees_above.jpg"),
    ("lomiri-wallpapers-16.04", "scene", "val", "Aitzol Berasategi", "CC-BY-4.0",
     "usr/share/backgrounds/{aitzgorri,friends}_by_Aitzol_Berasategi.jpg"),
    ("lomiri-wallpapers-16.04", "scene", "val", "Abhishek Mudgal", "CC-BY-4.0", "usr/share/backgrounds/umang_by_Abhishek_Mudgal.jpg"),
    ("palapeli-data", "scene", "val", "Eric Pouhier", "GFDL", "usr/share/palapeli/collection/castle-maintenon.jpg"),
    # Training scenes: never passed on, so their terms need only allow use.
    ("palapeli-data", "scene", "train", "B. Navez and others", "GFDL", "usr/share/palapeli/collection/panther-chameleon-female.jpg"),
    ("lomiri-wallpapers-16.04", "scene", "train", "Peter Nerlich", "CC-BY-SA-4.0",
     "usr/share/backgrounds/analogpattern_by_Peter_Nerlich.jpg"),
    ("mate-backgrounds", "scene", "train", "Wyng Stancikaite", GPL2, "usr/share/backgrounds/mate/abstract/Elephants_3840x2160.jpg"),
    ("mate-backgrounds", "scene", "train", "Lennart Poettering, Andrea Cimitan", GPL2,
     "usr/share/backgrounds/mate/nature/Blinds.jpg"),
    ("plasma-workspace-wallpapers", "scene", "train", "RJ Quiralta", KDE,
     "usr/share/wallpapers/Autumn/contents/images/2560x1600.jpg"),
    ("plasma-workspace-wallpapers", "scene", "train", "Sigi Sagi", KDE,
     "usr/share/wallpapers/Grey/contents/images/2560x1600.jpg"),
    ("plasma-workspace-wallpapers", "scene", "train", "Risto Saukonpää", KDE,
     "usr/share/wallpapers/{Kite,ColdRipple,DarkestHour,summer_1am}/contents/images/2560x1600.jpg"),
    ("plasma-workspace-wallpapers", "scene", "train", "Nikita Babin", "CC-BY-SA-4.0",
     "usr/share/wallpapers/Volna/contents/images/5120x2880.jpg"),
    ("opencv-doc", "scene", "train", "OpenCV contributors", "as opencv-doc (BSD-3-Clause, Apache-2.0); not stated per photo",
     "usr/share/doc/opencv-doc/examples/data/{aero1,apple,baboon,board,butterfly,ela_original,fruits,home,"
     "licenseplate_motion,orange,squirrel_cls,starry_night,stuff}.jpg"),
    ("opencv-doc", "scene", "train", "OpenCV contributors", "as opencv-doc (BSD-3-Clause, Apache-2.0); not stated per photo",
     "usr/share/doc/opencv-doc/examples/data/{chicky_512,rubberwhale1,sudoku}.png"),
    ("opencv-doc", "scene", "train", "OpenCV contributors", "as opencv-doc (BSD-3-Clause, Apache-2.0); not stated per photo",
     "usr/share/doc/opencv-doc/examples/{data/building.jpg,reg/home.png,alphamat/input_images/plant.jpg,hfs/data/000.jpg,"
     "hfs/data/001.jpg,hfs/data/002.jpg,dnn_superres/butterfly.png}"),
    ("opencv-doc", "scene", "train", "OpenCV contributors", "as opencv-doc (BSD-3-Clause, Apache-2.0); not stated per photo",
     "usr/share/doc/opencv-doc/examples/text/{scenetext01,scenetext02,scenetext03,scenetext04,scenetext05,scenetext06,"
     "scenetext_segmented_word01,scenetext_segmented_word02,scenetext_segmented_word03,scenetext_segmented_word04}.jpg"),
    ("opencv-doc", "scene", "train", "OpenCV contributors", "as opencv-doc (BSD-3-Clause, Apache-2.0); not stated per photo",
     "usr/share/doc/opencv-doc/opencv4/html/{Histogram_Equalization_Original_Image,Hough_Lines_Tutorial_Original_Image,"
     "Harris_Detector_Original_Image,Warp_Affine_Tutorial_Original_Image,pexels_double_decker_bus,feature_building,"
     "boat,budapest,fusion_mertens,corridor_fld,motion_original,retina_TreeHdr_small,space_shuttle,yolo,astra_color,"
     "detect_test2,cat_det,newspaper,handSrc,coins,studentsSample_input,ambush_5_left,bicubicOutput,choriginal,"
     "temple_input,HDRtoneMapping_memorialSample,11_demo}.jpg"),
]

# Real viewpoint pairs and videos, used by other tests; no photo of the benchmark comes from them.
PAIRS_AND_VIDEOS = ("opencv-doc", "usr/share/doc/opencv-doc/examples/data/",
                    "graf1.png graf3.png leuvenA.jpg leuvenB.jpg aloeL.jpg aloeR.jpg box.png box_in_scene.png left.jpg "
                    "right.jpg vtest.avi tree.avi".split())
