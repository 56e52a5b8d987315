"""How many pairs of captions the packaged language model merges in a way that passes the check.

    python -m tests.benchmarks.caption_merge

The pairs are written as CoCa and VideoBLIP write; the prompt was chosen on the twenty. The check sees words, not sense:
read what comes out.
"""

import time

import torch

from curation.caption_merge import CaptionMerger, MergedCaption

PAIRS = (
    ("a man in a suit and tie sitting in the back seat of a car", "a man is talking to another man in a car"),
    ("a bike parked next to a bollard on a cobblestone street", "the man walks around the street"),
    ("a cartoon rabbit standing in the grass", "the bunny is stretching and smiling"),
    ("a black and white photo of a man looking at his cell phone", "a man looks at the phone in his hand"),
    ("a bottle of water sitting on top of a wooden table", "a person picks up the bottle from the table"),
    ("a satellite flying over the earth", "the satellite moves away from the earth"),
    ("a woman with a red umbrella walking in the rain", "a woman crosses the road"),
    ("a bowl of soup with vegetables and herbs", "the cook stirs the soup with a spoon"),
    ("a group of people standing around a fountain", "people walk around and take pictures"),
    ("a dog laying on a couch next to a remote control", "the dog lifts its head and looks around"),
    ("a surfer riding a wave in the ocean", "the surfer falls into the water"),
    ("a laptop computer sitting on top of a desk", "a person types on the keyboard"),
    ("a man riding a bicycle down a street", "the man pedals past a parked van"),
    ("a row of bicycles parked on a street", "a person walks past the bicycles"),
    ("a large white rabbit in a green meadow", "the rabbit yawns and stretches its arms"),
    ("a man in a car wearing a tie", "the man talks to the camera while driving"),
    ("a close up of a plate of food on a table", "someone pours sauce over the food"),
    ("an aerial view of a city at night", "the camera moves forward over the buildings"),
    ("two children on a swing in a park", "a child is pushed on the swing by another child"),
    ("a red train at a station platform", "people get off the train and walk away"),
)
# Written after the prompt, to see what it does with others.
HELD_OUT = (
    ("a young boy holding a baseball bat", "the boy swings the bat at the ball"),
    ("a kitchen with a stove and a refrigerator", "a woman opens the refrigerator and takes out milk"),
    ("two elephants standing next to each other in a field", "the elephants walk slowly to the left"),
    ("a couple of boats floating on top of a lake", "a man rows the boat across the lake"),
    ("a close up of a clock on a wall", "the hands of the clock move"),
    ("a snowboarder in the air above a slope", "a person jumps and lands on the snow"),
    ("a white plate topped with a slice of pizza", "the person picks up the pizza and eats it"),
    ("a street with cars and tall buildings", "a bus stops and people get on"),
)


def main() -> None:
    torch.set_num_threads(1)
    merger = CaptionMerger(new_words=0.0)
    for title, pairs in (("pairs", PAIRS), ("held-out pairs", HELD_OUT)):
        began = time.process_time()
        answers = [each for each in merger.merge(pairs) if isinstance(each, MergedCaption)]
        spent = (time.process_time() - began) / len(pairs)
        merged = sum(each.source == "merged" for each in answers)
        print(f"{merger.name}: {merged} of {len(pairs)} {title} merged, {spent:.1f} CPU s each")
        for each in answers:
            print(f"  {each.reason or 'merged':12} {each.text}")


if __name__ == "__main__":
    main()
